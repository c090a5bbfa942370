"""The report of the held-out evaluation, from rows made by hand."""

from __future__ import annotations

import numpy as np
import pytest

from kandinsky_core.settings import DEFAULT_RELEASES, RELEASES
from kandinsky_core.training.evaluate import (
    TEST_SETS,
    checksum,
    find_parts,
    psnr,
    read_answers,
)
from kandinsky_core.training.evaluation_report import failures, make_report, wilson


def row(index: int, right: bool, name: str = "t2v") -> dict:
    judged = dict.fromkeys(("color", "shape", "motion", "count", "all"), right)
    asked = {"shape": "star", "color": "red", "motion": "left"}
    return {"set": name, "index": index, "language": "en", "asked": asked, "right": judged}


def test_wilson_matches_published_values():
    # Newcombe 1998, table I: 81 of 263, and 0 of 20
    assert wilson(81, 263) == pytest.approx((0.2553, 0.3662), abs=1e-4)
    assert wilson(0, 20) == pytest.approx((0.0, 0.1611), abs=1e-4)


def test_report_counts_rows_of_each_shape():
    settings = RELEASES[DEFAULT_RELEASES["nano"]]
    rows = [row(i, i < 3) for i in range(4)]
    report = make_report(rows, "abc", settings, 1.5, 2, 512.0)
    assert "| color | 3/4 = 75.0% |" in report
    assert "| star | 3/4 = 75.0% |" in report
    assert "Peak memory of the process: 512 MB" in report


def test_failures_name_what_is_below_its_floor():
    assert failures([row(i, True) for i in range(16)]) == []
    missed = failures([row(i, i < 2) for i in range(16)])
    assert any(phrase.startswith("t2v color 2/16") for phrase in missed)


def test_answers_of_all_processes_are_read(tmp_path):
    (tmp_path / "k-0.jsonl").write_text('{"set": "t2v", "index": 0}\n')
    (tmp_path / "k-1.jsonl").write_text('{"set": "t2v", "index": 1}\n')
    (tmp_path / "other-0.jsonl").write_text('{"set": "t2v", "index": 2}\n')
    assert sorted(read_answers(tmp_path, "k")) == [("t2v", 0), ("t2v", 1)]


def test_checksum_changes_with_weights_and_settings(tmp_path):
    for part in ("transformer", "text_encoder", "vae"):
        (tmp_path / f"{part}.safetensors").write_bytes(part.encode())
    paths = find_parts(tmp_path)
    before = checksum(paths, {})
    assert checksum(paths, {"num_steps": 8}) != before
    paths["vae"].write_bytes(b"other")
    assert checksum(paths, {}) != before


def test_psnr_of_a_known_error():
    a = np.zeros((4, 4, 3), np.uint8)
    assert psnr(a, a + 51) == pytest.approx(13.979, abs=1e-3)  # 20 log10(255 / 51)


def test_two_object_questions_have_two_objects():
    questions = TEST_SETS["two_objects"].questions(5)
    assert [len(question.scene.objects) for question in questions] == [2] * 5
