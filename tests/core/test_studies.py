"""The studies of sparsity and caches on nano: their arithmetic, and that one question runs."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from kandinsky_core.attention import Nabla, Tiling, sliding_window, top_p_blocks
from kandinsky_core.caching import MagRatios
from kandinsky_core.nano import nano_path
from kandinsky_core.training.distributed import Group
from kandinsky_core.training.studies import cache as cache_study
from kandinsky_core.training.studies import sparsity as study
from kandinsky_core.training.studies.answers import Answers
from kandinsky_core.training.studies.evaluate import PARTS, TEST_SETS, load
from kandinsky_core.training.studies.features import (
    NUM_FEATURES,
    ClipFeatures,
    frechet_distance,
    prepare,
    train_features,
)
from kandinsky_core.training.studies.intervals import around, resamples, share_difference
from kandinsky_core.training.studies.sparsity_levels import LevelCounter, find_p, find_window
from kandinsky_core.training.studies.sparsity_report import WHAT, make_report


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


def test_frechet_distances_of_many_sets_are_those_of_each():
    rng = np.random.default_rng(1)
    first, second = rng.normal(size=(2, 5, 30, 4))
    one_by_one = [float(frechet_distance(a, b)) for a, b in zip(first, second, strict=True)]
    assert frechet_distance(first, second) == pytest.approx(one_by_one)
    assert len(set(one_by_one)) == 5


def test_paired_shares_follow_bonett_and_price():
    these = np.array([True] * 5 + [False] + [True] * 30 + [False] * 14)
    those = np.array([False] * 5 + [True] + [True] * 30 + [False] * 14)
    # by hand: p 6/52 and 2/52, their difference 4/52 with deviation 0.053337
    difference, low, high = share_difference(these, those)
    assert difference == pytest.approx(4 / 50)
    assert (low, high) == pytest.approx((-0.02762, 0.18146), abs=1e-4)


def test_equal_answers_keep_an_interval():
    alike = np.ones(20, bool)
    difference, low, high = share_difference(alike, alike)
    assert difference == 0
    assert -0.2 < low < 0 < high < 0.2


def test_resamples_are_the_same_every_time_and_spread_as_the_mean_does():
    values = np.random.default_rng(2).normal(size=400)
    assert (resamples(400) == resamples(400)).all()
    value, low, high = around(values.mean(), values[resamples(400)].mean(-1))
    assert low + high == pytest.approx(2 * value)
    assert high - value == pytest.approx(1.96 * values.std() / 20, rel=0.1)


@pytest.mark.parametrize(("sparsity", "window"), [(0.8, (3, 7, 7)), (0.9, (7, 3, 3))])
def test_windows_reach_their_sparsity_and_no_denser_one_does(sparsity, window):
    grid = (7, 8, 8)
    assert find_window(grid, sparsity) == window
    # pairs within reach along an axis, counted one by one
    near = [
        sum(abs(a - b) <= width // 2 for a in range(n) for b in range(n)) / n**2
        for n, width in zip(grid, window, strict=True)
    ]
    assert sparsity <= 1 - np.prod(near) < sparsity + 0.02
    with pytest.raises(ValueError, match="take more"):
        find_window((2, 2, 2), 0.95)


def test_p_from_one_dense_run_is_what_nabla_keeps():
    torch.manual_seed(0)
    tiling, window = Tiling((3, 4, 4), (1, 2, 2)), (3, 3, 3)
    q, k = 2 * torch.randn(2, 1, 2, 4 * 48, 16)
    counter = LevelCounter(tile_thw=(1, 2, 2), sta_window_thw=None, window_thw=window)
    assert counter.choose(q, k, tiling, None).kept.all()
    near = sliding_window((3, 4, 4), window)
    for counts, always in zip(counter.counts, (torch.zeros_like(near), near), strict=True):
        p = find_p(counts, 0.4)
        density = (top_p_blocks(q, k, 4, p) | always).float().mean()
        denser = (top_p_blocks(q, k, 4, p + 0.002) | always).float().mean()
        assert density <= 0.6 + 1e-3
        assert denser > 0.6 - 1e-3
    assert find_p(counter.counts[1], 0.4) < find_p(counter.counts[0], 0.4)


def test_variants_aim_beyond_their_sparsity():
    counts = torch.zeros(2, 1000)
    counts[0] += 1  # as many blocks at every level: the density is P
    counts[1, 500:] += 1  # half as many, so P lies higher
    nablas = {v.name: study.choose_nabla(v, counts, (7, 8, 8)) for v in study.VARIANTS}
    assert nablas["dense"] is None
    alone, both = nablas["NABLA alone 0.8"], nablas["NABLA + STA 0.9"]
    assert (alone.cdf_threshold, alone.sta_window_thw) == (pytest.approx(0.19, abs=0.0011), None)
    assert both.cdf_threshold == pytest.approx(0.545, abs=0.0011)
    assert both.sta_window_thw == (3, 3, 3)
    assert nablas["STA alone 0.8"] == Nabla(0.0, (1, 2, 2), (3, 7, 7))


def test_variants_of_a_question_come_together():
    def order(rank, done):
        places = study.open_questions(Group(rank, 2), done, 3)
        return [(name, index, len(waiting)) for name, index, _, waiting in places]

    everybody = len(study.VARIANTS)
    assert order(0, {}) == [(n, i, everybody) for i in (0, 2) for n in study.SETS]
    assert order(1, {}) == [(n, 1, everybody) for n in study.SETS]
    done = {(f"{variant.name}/t2v", 1): {} for variant in study.VARIANTS[1:]}
    assert order(1, done) == [("t2v", 1, 1), ("two_objects", 1, everybody)]


def toy_answers(count: int) -> dict[tuple[str, int], dict[str, Any]]:
    """Dense is always right, "same 0.8" answers as it does, "worse 0.9" is wrong and far off."""
    rng = np.random.default_rng(3)
    rows = {}
    for i in range(count):
        made, rendered = rng.normal(size=(2, 3)).tolist()
        for name, right, density, move in (
            ("dense", True, 1.0, 0),
            ("same 0.8", True, 0.19, 0),
            ("worse 0.9", False, 0.09, 5),
        ):
            rows[f"{name}/t2v", i] = {
                "right": dict.fromkeys(WHAT, right),
                "density": density,
                "p": None,
                "window": None,
                "features": [value + move for value in made],
                "rendered": rendered,
            }
    return rows


def test_reports_compare_with_dense_question_by_question():
    rows = toy_answers(30)
    del rows["same 0.8/t2v", 29]  # a stopped study: the question counts for nobody
    report = make_report(rows, ("dense", "same 0.8", "worse 0.9"), ("t2v",), "toy")
    assert "29 questions answered by all variants" in report
    table = [line.split(" | ") for line in report.splitlines() if line.startswith("| ")]
    (_, dense, same, worse) = table
    assert [line[0] for line in (dense, same, worse)] == [
        "| dense",
        "| same, 81.0%",
        "| worse, 91.0%",
    ]
    assert dense[3] == "100%"
    assert same[3].startswith("100%, +0 (-")
    assert worse[3].startswith("0%, -100 (-100 to -")
    assert ", +0.00 (+0.00 to +0.00)" in same[-1]
    verdict = report[report.index("## Verdict") :]
    # all 29 agree: Bonett and Price add one of each kind, so that 2 of 31 differ, 1 each way
    least = 100 * 1.96 * (2 / 31 / 31) ** 0.5
    assert verdict.splitlines()[2] == (
        "* One object, 29 captions (100% all right with dense): worse, 91.0% is worse than dense "
        "in color, shape, motion, all, count, Frechet; of the other 1 no difference was found, "
        f"where one below {least:.0f} points in all would not have shown."
    )
    assert len(verdict.splitlines()) == 4


def test_reports_of_too_little_say_so():
    report = make_report(toy_answers(1), ("dense", "same 0.8"), ("t2v",), "toy")
    assert "1 questions answered by all variants\n\nToo few" in report


RATIOS = MagRatios((1.0, 1.0, 1.0, 1.02, 1.02, 1.02), (1.0, 1.0, 1.0, 1.0, 1.0, 1.0), "toy")


def test_schedules_follow_the_threshold_until_the_limit_of_skips():
    # ratio 1 costs nothing: two skips, the limit, then a run; 1.02 adds 0.02, then 0.0404
    assert cache_study.schedule(RATIOS, 0.01, 7) == {"cond": "x..xxxx", "uncond": "x..x..x"}
    assert cache_study.schedule(RATIOS, 0.03, 7)["cond"] == "x..x.x."
    both = [cache_study.schedule(RATIOS, threshold, 7) for threshold in (0.5, 5.0)]
    assert both[0] == both[1] == {"cond": "x..x..x", "uncond": "x..x..x"}


@pytest.mark.slow
def test_one_question_of_each_study(tmp_path, monkeypatch):
    paths = {part: nano_path(part) for part in PARTS}
    pipeline = load(paths, {"num_steps": 3})
    monkeypatch.setattr(cache_study, "THRESHOLDS", (0.0, 9.0))
    answers = Answers(tmp_path, "key")
    with torch.no_grad():
        ratios = cache_study.find_ratios(pipeline, tmp_path / "ratios.json")
        again = cache_study.find_ratios(pipeline, tmp_path / "ratios.json")
        cache_study.study(pipeline, ratios, answers, 1)
    assert again.cond == ratios.cond
    rows = answers.read()
    assert rows["0", 0]["error"] == 0
    assert rows["9", 0]["skipped"] > 0
    report = cache_study.make_report(rows, "key", pipeline, ratios)
    assert "| in full | 1 | 0% |" in report
    marks = cache_study.schedule(ratios, 9.0, 3)
    assert "".join(marks.values()).count(".") == rows["9", 0]["skipped"]
    assert f"| 9 | `{marks['cond']}` | `{marks['uncond']}` |" in report

    monkeypatch.setattr(study, "SIZE", 128)
    question = TEST_SETS["t2v"].questions(1)[0]
    dense, density = study.make_clip(pipeline, question, None)
    assert density == 1
    assert dense.shape == (25, 128, 128, 3)
    sparse, density = study.make_clip(pipeline, question, Nabla(0.3, (1, 2, 2), (1, 1, 1)))
    assert density < 0.9
    assert (sparse != dense).any()

    monkeypatch.setattr(study, "NUM_PROBES", 1)
    monkeypatch.setattr(study, "SETS", ("t2v",))
    counts = study.count_levels(Group(), pipeline)
    assert counts[0].sum() == counts[1].sum() > 0
    p = study.find_p(counts[0], 0.6)
    _, density = study.make_clip(pipeline, question, Nabla(p, (1, 2, 2), None))
    assert density == pytest.approx(0.4, abs=0.05)
