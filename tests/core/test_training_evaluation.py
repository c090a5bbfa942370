"""The reports of the held-out evaluation and of colour drift, from rows made by hand."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

from kandinsky_core.family.settings import DEFAULT_RELEASES, RELEASES
from kandinsky_core.training.studies import evaluate
from kandinsky_core.training.studies.continuing import (
    Given,
    complete,
    largest_change,
    make_table,
)
from kandinsky_core.training.studies.drift import drift_table, measure_drift
from kandinsky_core.training.studies.evaluate import (
    ALL_SETS,
    TEST_SETS,
    find_parts,
    load,
    psnr,
)
from kandinsky_core.training.studies.evaluation_report import failures, make_report
from kandinsky_core.training.world import held_out_edits, heldout_captions, render
from kandinsky_core.video import ColorDrift, color_drift


def row(index: int, right: bool, name: str = "t2v") -> dict:
    judged = dict.fromkeys(("color", "shape", "motion", "count", "all"), right)
    asked = {"shape": "star", "color": "red", "motion": "left"}
    return {"set": name, "index": index, "language": "en", "asked": asked, "right": judged}


def test_report_counts_rows_of_each_shape():
    settings = RELEASES[DEFAULT_RELEASES["nano"]]
    rows = [row(i, i < 3) for i in range(4)]
    report = make_report(rows, "abc", settings, 1.5, 2, 512.0, "evaluate")
    assert "| color | 3/4 = 75.0% |" in report
    assert "| star | 3/4 = 75.0% |" in report
    assert "Peak memory of the process: 512 MB" in report


def test_failures_name_what_is_below_its_floor():
    assert failures([row(i, True) for i in range(16)]) == []
    missed = failures([row(i, i < 2) for i in range(16)])
    assert any(phrase.startswith("t2v color 2/16") for phrase in missed)


def test_psnr_of_a_known_error():
    a = np.zeros((4, 4, 3), np.uint8)
    assert psnr(a, a + 51) == pytest.approx(13.979, abs=1e-3)  # 20 log10(255 / 51)


def test_two_object_questions_have_two_objects():
    questions = TEST_SETS["two_objects"].questions(5)
    assert [len(question.scene.objects) for question in questions] == [2] * 5


def test_report_of_edits_counts_each_kind():
    settings = RELEASES[DEFAULT_RELEASES["nano"]]
    rows = [
        {
            "set": "i2i",
            "index": index,
            "language": "ru",
            "asked": {"edit": "move" if index < 2 else "remove"},
            "right": {"edited": index != 0, "kept": True, "all": index != 0},
        }
        for index in range(5)
    ]
    report = make_report(rows, "abc", settings, 1.5, 2, None, "evaluate --edit")
    assert "| edited | 4/5 = 80.0% |" in report and "| 85% |" in report
    assert "| move | 1/2 | 2/2 | 1/2 |" in report
    assert "| remove | 3/3 | 3/3 | 3/3 |" in report


def test_edit_questions_are_answered_with_the_source_picture(monkeypatch):
    (question,) = held_out_edits(1)
    assert list(ALL_SETS["i2i"].questions(1)) == [question]
    done, requests = render(question.edit.target, 128, 1), []

    def generate(_, request):
        requests.append(request)
        return SimpleNamespace(frames=lambda: iter(done))

    monkeypatch.setattr(evaluate, "generate", generate)
    pipeline = SimpleNamespace(settings=RELEASES[DEFAULT_RELEASES["nano"]])
    row = evaluate.answer(pipeline, ALL_SETS["i2i"], question)
    assert row["right"] == {"edited": True, "kept": True, "all": True}
    (request,) = requests
    assert (request.task, request.prompt) == ("i2i", question.instruction)
    assert (request.image == render(question.edit.source, 128, 1)[0]).all()


def test_drift_is_the_change_against_the_first_frame():
    frames = np.full((3, 4, 4, 3), 100, np.uint8)
    frames[1:, ..., 0] = 110  # redder by 10: brighter by 10 x 0.299
    assert color_drift(frames) == pytest.approx((2.99, 0.0, 10.0), abs=1e-6)
    frames[1:] = 100
    frames[1:, ::2] = 120
    assert color_drift(frames).contrast == pytest.approx(10.0)
    with pytest.raises(ValueError, match="at least 2 frames, got 1"):
        color_drift(frames[:1])


def test_drift_table_has_a_row_for_each_clip():
    row = {"as sampled": ColorDrift(-2.0, 1.0, 3.0), "normalised": ColorDrift(1.0, 0.0, 1.0)}
    other = {"as sampled": ColorDrift(4.0, 1.0, 3.0), "normalised": ColorDrift(-1.0, 0.5, 1.0)}
    table = drift_table([row, other])
    assert "| as sampled | 3.00 | 1.00 | 3.00 |" in table
    assert "| normalised | 1.00 | 0.25 | 1.00 |" in table


def test_drift_of_a_hurried_run_before_and_after():
    pipeline = load(find_parts(None), {"num_steps": 1, "guidance_scale": 1.0})
    drifts = measure_drift(pipeline, heldout_captions(1, task="i2v")[0])
    assert list(drifts) == ["as rendered", "as sampled", "normalised"]
    assert drifts["as sampled"] != drifts["normalised"]


@pytest.mark.parametrize("given", [Given("five", 5), Given("ends", 1, last=True)])
def test_given_frames_stay_and_the_others_are_made(given):
    pipeline = load(find_parts(None), {"num_steps": 1, "guidance_scale": 1.0})
    question = heldout_captions(1, task="i2v")[0]
    truth = render(question.scene, 128, 13)
    made = complete(pipeline, question, truth, given)
    assert made.shape == truth.shape
    assert evaluate.psnr(made[0], truth[0]) > 25
    middle = evaluate.psnr(made[8], truth[8])
    kept = evaluate.psnr(made[-1], truth[-1]) if given.last else evaluate.psnr(made[3], truth[3])
    assert kept > 25 > middle


def test_largest_change_is_that_between_two_frames():
    frames = np.zeros((4, 2, 2, 3), np.uint8)
    frames[2:] = 8
    assert largest_change(frames) == 8.0


def test_table_of_given_frames_counts_shares():
    right = {"color": 1.0, "shape": 1.0, "motion": 1.0, "all": 1.0, "change": 1.5}
    table = make_table({"first 5 frames": [right, right | {"motion": 0.0, "all": 0.0}]})
    assert "| first 5 frames | 2 | 100% (34% to 100%) |" in table
    assert "| 50% (9% to 91%) | 1.50x |" in table
