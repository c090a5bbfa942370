"""Sixteen held-out questions to the bundled model, judged by the oracle.

The whole list is docs/nano_report.md; this says that the weights in the repository are the ones
that were measured there, as far as sixteen answers can.
"""

from __future__ import annotations

import pytest

from kandinsky_core.training.studies import evaluate


@pytest.mark.slow
def test_bundled_edit_model_is_above_its_floors(tmp_path: pytest.TempPathFactory) -> None:
    evaluate.main(["--edit", "--count", "16", "--answers", str(tmp_path), "--floors"])


@pytest.mark.slow
@pytest.mark.parametrize("name", ["t2v", "t2i"])
def test_bundled_model_is_above_its_floors(name: str, tmp_path: pytest.TempPathFactory) -> None:
    arguments = ["--sets", name, "--count", "16", "--answers", str(tmp_path), "--floors"]
    evaluate.main(arguments)
