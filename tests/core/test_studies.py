"""The studies of sparsity and caches on nano: their arithmetic, and that one question runs."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from kandinsky_core.attention import Nabla
from kandinsky_core.nano import nano_path
from kandinsky_core.training import cache_study, sparsity_study
from kandinsky_core.training.evaluate import PARTS, TEST_SETS, load
from kandinsky_core.training.features import (
    NUM_FEATURES,
    ClipFeatures,
    frechet_distance,
    prepare,
    train_features,
)


def test_frechet_distance_of_known_gaussians():
    rng = np.random.default_rng(0)
    first = rng.normal(size=(40_000, 3)) * [1, 2, 3]
    second = rng.normal(size=(40_000, 3)) * [2, 2, 1] + [1, 0, 0]
    # diagonal covariances: squared mean difference and squared differences of deviations
    assert frechet_distance(first, second) == pytest.approx(1 + 1 + 0 + 4, rel=0.05)
    assert frechet_distance(first, first) == pytest.approx(0, abs=1e-6)


def test_features_take_clips_of_any_size():
    torch.manual_seed(0)
    network = ClipFeatures()
    for shape in ((17, 128, 128, 3), (25, 256, 256, 3)):
        assert network(prepare(np.zeros(shape, np.uint8))).shape == (1, NUM_FEATURES)


@pytest.mark.slow
def test_features_are_learnt_and_the_same_every_time():
    first, again = (train_features(3, batch=2) for _ in range(2))
    weights = zip(first.parameters(), again.parameters(), strict=True)
    assert all(torch.equal(a, b) for a, b in weights)


def test_p_is_found_by_bisection():
    seen = []

    def density(nabla: Nabla) -> float:
        seen.append(nabla.cdf_threshold)
        return nabla.cdf_threshold**2

    variant = sparsity_study.Variant("x", 0.75)
    nabla = sparsity_study.find_nabla(variant, density, rounds=12)
    assert nabla.cdf_threshold == pytest.approx(0.5, abs=1e-3)
    assert len(seen) == 12
    assert sparsity_study.find_nabla(sparsity_study.VARIANTS[0], density) is None


def test_reports_count_what_is_right():
    features = {"features": [0.0, 1.0], "rendered": [1.0, 0.0]}
    rows = {
        ("dense/t2v", i): {
            "right": dict.fromkeys(sparsity_study.ROWS, i < 3),
            "density": 1.0,
            "p": None,
            **features,
        }
        for i in range(4)
    }
    report = sparsity_study.make_report(rows, "key")
    line = next(line for line in report.splitlines() if line.startswith("| dense"))
    assert line.count("75%") == len(sparsity_study.ROWS)


@pytest.mark.slow
def test_one_question_of_each_study(tmp_path, monkeypatch):
    paths = {part: nano_path(part) for part in PARTS}
    pipeline = load(paths, {"num_steps": 3})
    monkeypatch.setattr(cache_study, "THRESHOLDS", (0.0, 9.0))
    path = tmp_path / "key-0.jsonl"
    with torch.no_grad():
        cache_study.study(pipeline, path, {}, 1)
    rows = cache_study.read_answers(tmp_path, "key")
    assert rows["0", 0]["error"] == 0
    assert rows["9", 0]["skipped"] > 0
    assert "| in full | 1 | 0% |" in cache_study.make_report(rows, "key", pipeline)

    monkeypatch.setattr(sparsity_study, "SIZE", 128)
    question = TEST_SETS["t2v"].questions(1)[0]
    dense, density = sparsity_study.make_clip(pipeline, question, None)
    assert density == 1
    assert dense.shape == (25, 128, 128, 3)
    sparse, density = sparsity_study.make_clip(pipeline, question, Nabla(0.3, (1, 2, 2), (1, 1, 1)))
    assert density < 0.9
    assert (sparse != dense).any()
