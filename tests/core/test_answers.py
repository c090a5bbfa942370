"""Answers of studies: a stopped study goes on where it was."""

from __future__ import annotations

import pytest

from kandinsky_core.training.distributed import Group
from kandinsky_core.training.studies.answers import Answers, checksum


def test_answers_of_all_processes_are_read(tmp_path):
    (tmp_path / "k-0.jsonl").write_text('{"set": "t2v", "index": 0}\n')
    (tmp_path / "k-1.jsonl").write_text('{"set": "t2v", "index": 1}\n')
    (tmp_path / "other-0.jsonl").write_text('{"set": "t2v", "index": 2}\n')
    assert sorted(Answers(tmp_path, "k").read()) == [("t2v", 0), ("t2v", 1)]


def test_a_stopped_study_finds_each_answer_that_was_given(tmp_path):
    answers = Answers(tmp_path / "new", "k")
    with pytest.raises(KeyboardInterrupt), answers.go_on(Group(rank=1, size=1)) as (done, add):
        assert done == {}
        add("t2v", 3, {"caption": "красный круг"})
        # safe before the file is closed: a killed process closes nothing
        assert answers.read()["t2v", 3]["caption"] == "красный круг"
        raise KeyboardInterrupt
    with answers.go_on() as (done, add):
        assert list(done) == [("t2v", 3)]
        add("t2v", 4, {})
    assert list(answers.read()) == [("t2v", 4), ("t2v", 3)]
    assert sorted(path.name for path in answers.folder.iterdir()) == ["k-0.jsonl", "k-1.jsonl"]


def test_a_line_that_was_being_written_is_left_out_and_cut_off(tmp_path):
    path = tmp_path / "k-0.jsonl"
    path.write_text('{"set": "t2v", "index": 0}\n{"set": "t2v", "ind')
    answers = Answers(tmp_path, "k")
    assert list(answers.read()) == [("t2v", 0)]
    with answers.go_on() as (_, add):
        add("t2v", 1, {})
    assert list(answers.read()) == [("t2v", 0), ("t2v", 1)]


def test_checksum_changes_with_weights_and_settings(tmp_path):
    paths = {part: tmp_path / part for part in ("transformer", "vae")}
    for part, path in paths.items():
        path.write_bytes(part.encode())
    before = checksum(paths, {})
    assert len(before) == 12
    assert checksum(paths, {"num_steps": 8}) != before
    paths["vae"].write_bytes(b"other")
    assert checksum(paths, {}) != before
