"""Sixteen held-out questions to the bundled model, judged by the oracle.

The whole list is docs/nano_report.md; this says that the weights in the repository are the ones
that were measured there, as far as sixteen answers can.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from kandinsky_core.training.studies import evaluate


@pytest.mark.slow
@pytest.mark.parametrize("sets", [["t2v", "t2i"], ["i2i", "--edit"]], ids=lambda sets: sets[0])
def test_bundled_model_is_above_its_floors(sets: list[str], tmp_path: Path) -> None:
    arguments = ["--count", "16", "--answers", str(tmp_path / "answers"), "--sets", *sets]
    evaluate.main([*arguments, "--floors"])
    asked = 16 * sum(not each.startswith("--") for each in sets)
    rows = [row for path in (tmp_path / "answers").iterdir() for row in path.open()]
    assert len(rows) == asked
    if "--edit" in sets:  # the quicker one to time
        evaluate.main([*arguments, "--report-only", "--report", str(tmp_path / "report.md")])
        assert "An edit takes" in (tmp_path / "report.md").read_text(encoding="utf-8")
