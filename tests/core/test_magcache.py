"""MagCache against the published algorithm, and on a small untrained model."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from torch import Tensor

from kandinsky_core.caching import Counts, MagCache, MagRatios, find_ratios
from kandinsky_core.family.config import VideoVAEConfig
from kandinsky_core.family.settings import RELEASES, SamplingSettings
from kandinsky_core.family.variants import VARIANTS
from kandinsky_core.generate import GenerateRequest, generate
from kandinsky_core.models import CrossDiT, VideoVAE
from kandinsky_core.pipeline import Pipeline
from kandinsky_core.text import TextConditioning

SETTINGS = SamplingSettings(
    num_steps=10,
    guidance_scale=2.0,
    shift=3.0,
    rope_scale=(1.0, 1.0, 1.0),
    sizes=((32, 48),),
    num_frames=5,
    frame_choices=(1, 5),
    negative_prompt="nothing",
)
VAE = VideoVAEConfig(
    (8, 8, 8), 1, latent_channels=4, norm_num_groups=4, patch_size=4, mid_block_attention=False
)
CALM = (1.0,) * 9
"""Ratios that promise no error at all: only the limit on skips in a row makes a block run."""
WILD = (3.0,) * 9
"""Ratios that promise a large error: nothing may be skipped."""


def ratios(cond: Sequence[float] = CALM, uncond: Sequence[float] | None = CALM) -> MagRatios:
    return MagRatios(tuple(cond), None if uncond is None else tuple(uncond), "a test")


def released() -> list[MagRatios]:
    tables = {}
    for release, settings in RELEASES.items():
        for size_class in filter(None, (settings, settings.larger)):
            try:
                table = find_ratios(release, size_class)
            except ValueError:
                continue
            tables[table.source] = table
    return list(tables.values())


def published_skips(
    column: Sequence[float],
    num_steps: int,
    *,
    uncond: bool,
    threshold: float,
    max_skips: int,
    retention: float,
) -> list[int]:
    """Return the steps of one branch that the published algorithm skips, each judged from
    scratch."""
    table = np.array([1.0, *column])
    if num_steps == 1:
        table = table[-1:]
    elif len(table) != num_steps:
        stride = (len(table) - 1) / (num_steps - 1)
        table = table[np.round(np.arange(num_steps) * stride).astype(int)]
    skipped: list[int] = []
    last_run = None
    for step in range(num_steps):
        # calls are numbered through both branches
        retained = 2 * step + uncond < int(num_steps * 2 * retention)
        if not retained and last_run is not None:
            drift = np.abs(1 - np.cumprod(table[last_run + 1 : step + 1])).sum()
            if drift < threshold and step - last_run <= max_skips:
                skipped.append(step)
                continue
        last_run = step
    return skipped


def play(cache: MagCache, num_steps: int, branches: Sequence[str]) -> dict[str, list[int]]:
    """Run steps whose blocks add the number of the step; return those that did not run."""
    cache.begin(num_steps)
    skipped: dict[str, list[int]] = {branch: [] for branch in branches}
    last_run = dict.fromkeys(branches, -1)
    for step in range(num_steps):
        for branch in branches:
            visual = torch.full((1, 2, 3), 100.0)
            output = cache.around(branch)(visual, lambda visual, add=step: visual + add)
            added = (output - visual).unique().item()
            if added == step:
                last_run[branch] = step
            else:
                assert added == last_run[branch], "what is reused is the last thing computed"
                skipped[branch].append(step)
    return skipped


@pytest.mark.parametrize("table", released(), ids=lambda table: table.source)
def test_skips_are_those_of_the_published_algorithm(table: MagRatios) -> None:
    branches = {"cond": table.cond} | ({"uncond": table.uncond} if table.uncond else {})
    some = 0
    for num_steps in (1, 2, 3, 4, 5, 7, 8, 16, 25, 33, 50, 64):
        for threshold, max_skips, retention in (
            (0.12, 2, 0.2),
            (0.03, 1, 0.2),
            (0.5, 4, 0.35),
            (0.0, 2, 0.0),
        ):
            options = {"threshold": threshold, "max_skips": max_skips, "retention": retention}
            expected = {
                branch: published_skips(column, num_steps, uncond=branch == "uncond", **options)
                for branch, column in branches.items()
            }
            assert play(MagCache(table, **options), num_steps, list(branches)) == expected
            some += sum(map(len, expected.values()))
    assert some > 100, "the cases skip something"


def test_a_calm_table_worked_out_by_hand() -> None:
    # 2 of 10 steps are retained; then two are skipped for each that runs
    skipped = play(MagCache(ratios()), 10, ("cond", "uncond"))
    assert skipped == {"cond": [2, 3, 5, 6, 8, 9], "uncond": [2, 3, 5, 6, 8, 9]}
    # 16 calls of 8 steps retain int(3.2) = 3: the third is the second one with the prompt
    skipped = play(MagCache(ratios()), 8, ("cond", "uncond"))
    assert skipped == {"cond": [2, 3, 5, 6], "uncond": [1, 2, 4, 5, 7]}


def test_errors_add_up_from_the_last_step_that_ran() -> None:
    # the product is 1.05, then 1.1025: errors 0.05, then 0.1525 in all, which is too much
    table = ratios((1.05,) * 9, (1.05,) * 9)
    assert play(MagCache(table, retention=0.0), 10, ("cond",)) == {"cond": [1, 3, 5, 7, 9]}
    # products 1.1 and 1.1 x 0.9 = 0.99: errors 0.1 and 0.11 in all, below 0.12
    table = ratios((1.1, 0.9, 1.0) * 3)
    assert play(MagCache(table, retention=0.0), 10, ("cond",)) == {"cond": [1, 2, 4, 5, 7, 8]}


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"threshold": -0.1}, "threshold is -0.1"),
        ({"threshold": float("nan")}, "threshold is nan"),
        ({"threshold": float("inf")}, "threshold is inf"),
        ({"max_skips": -1}, "0 or more"),
        ({"retention": 1.5}, "from 0 to 1"),
    ],
)
def test_options_out_of_range_are_refused(options: dict[str, float], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        MagCache(ratios(), **options)


def test_misuse_is_refused() -> None:
    cache = MagCache(ratios())
    with pytest.raises(ValueError, match="no run was begun"):
        cache.around("cond")
    cache.begin(2)
    for wrong in ((), ("cond", "cond"), ("positive",)):
        with pytest.raises(ValueError, match="at most once"):
            cache.around(*wrong)
    with pytest.raises(ValueError, match="does not divide"):
        cache.around("cond", "uncond")(torch.zeros(3, 1, 1), torch.clone)


@pytest.mark.parametrize("uncond", [CALM, WILD, None])
def test_branches_in_one_batch_give_what_they_give_apart(
    uncond: tuple[float, ...] | None,
) -> None:
    """Decisions that differ within a batch included."""
    table, num_steps = ratios(CALM, uncond), 12
    apart, together = MagCache(table), MagCache(table)
    apart.begin(num_steps)
    together.begin(num_steps)
    torch.manual_seed(0)
    for _ in range(num_steps):
        visual, added = torch.randn(4, 2, 3), torch.randn(4, 2, 3)
        halves = [
            apart.around(branch)(visual[rows], partial(torch.add, added[rows]))
            for branch, rows in (("uncond", slice(0, 2)), ("cond", slice(2, 4)))
        ]
        both = together.around("uncond", "cond")(visual, partial(torch.add, added))
        assert torch.equal(both, torch.cat(halves))
    assert apart.counts == together.counts
    assert apart.counts["cond"].skipped > 0


def test_another_size_in_the_middle_of_a_run_runs_in_full() -> None:
    cache = MagCache(ratios(), retention=0.0)
    cache.begin(9)
    for size in (2, 5, 5):
        visual = torch.zeros(1, size, 3)
        cache.around("cond")(visual, lambda visual: visual + 1)
    assert cache.counts == {"cond": Counts(1, 3)}


def test_calls_past_the_last_step_run_in_full() -> None:
    cache = MagCache(ratios(), retention=0.0)
    cache.begin(3)
    for _ in range(6):
        cache.around("cond")(torch.zeros(1, 2, 3), lambda visual: visual + 1)
    assert cache.counts == {"cond": Counts(2, 6)}


class Text:
    """Gives every prompt its own vector."""

    def encode(self, prompts: Sequence[str], **_: object) -> TextConditioning:
        generator = torch.Generator().manual_seed(sum(prompts[0].encode()))
        tokens = torch.randn(1, 3, 24, generator=generator)
        pooled = torch.randn(1, 12, generator=generator)
        return TextConditioning(tokens, torch.ones(1, 3, dtype=torch.bool), pooled)


@pytest.fixture(scope="module")
def pipeline() -> Pipeline:
    torch.manual_seed(0)
    transformer = CrossDiT(VARIANTS["debug"]).eval()
    for param in transformer.parameters():
        torch.nn.init.normal_(param, std=0.1)
    return Pipeline(transformer, Text(), VideoVAE(VAE).eval(), SETTINGS)


def count_blocks(pipeline: Pipeline) -> list[int]:
    """Return a list that grows with every run of a visual block."""
    runs: list[int] = []
    for index, block in enumerate(pipeline.transformer.visual_transformer_blocks):
        block.register_forward_hook(lambda *_, index=index: runs.append(index))
    return runs


def latents(pipeline: Pipeline, cache: MagCache | None, **options: object) -> Tensor:
    return generate(pipeline, GenerateRequest("a", **options), cache=cache).latents


def picture() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (32, 48, 3), dtype=np.uint8)


@pytest.mark.parametrize("image", [None, picture()], ids=["t2v", "i2v"])
def test_a_threshold_of_zero_changes_nothing(pipeline: Pipeline, image: np.ndarray | None) -> None:
    options = {"num_steps": 4, "image": image, "task": "t2v" if image is None else "i2v"}
    cache = MagCache(ratios(), threshold=0.0)
    assert torch.equal(latents(pipeline, cache, **options), latents(pipeline, None, **options))
    assert cache.counts == {"cond": Counts(0, 4), "uncond": Counts(0, 4)}


@pytest.mark.parametrize("image", [None, picture()], ids=["t2v", "i2v"])
def test_what_is_counted_as_skipped_did_not_run(
    pipeline: Pipeline, image: np.ndarray | None
) -> None:
    task = "t2v" if image is None else "i2v"
    full = latents(pipeline, None, image=image, task=task)
    runs, cache = count_blocks(pipeline), MagCache(ratios())
    cached = latents(pipeline, cache, image=image, task=task)
    assert cache.counts == {"cond": Counts(6, 10), "uncond": Counts(6, 10)}
    assert runs == [0, 1] * (20 - 12)
    assert cached.isfinite().all()
    assert not torch.equal(cached, full)
    assert torch.equal(cached[:, :, :1], full[:, :, :1]) == (image is not None)
    assert "12 of 20 runs" in cache.summary()
    assert "prompt 6 of 10, negative prompt 6 of 10" in cache.summary()


@pytest.mark.parametrize(
    ("cond", "uncond", "skipped"),
    [(CALM, WILD, (6, 0)), (WILD, CALM, (0, 6)), (CALM, None, (6, 0))],
)
def test_the_branches_are_judged_apart(
    pipeline: Pipeline,
    cond: tuple[float, ...],
    uncond: tuple[float, ...] | None,
    skipped: tuple[int, int],
) -> None:
    cache = MagCache(ratios(cond, uncond))
    latents(pipeline, cache)
    assert [each.skipped for each in cache.counts.values()] == list(skipped)
    assert ("has none for the negative prompt" in cache.summary()) == (uncond is None)


def test_a_branch_reuses_its_own_residual(pipeline: Pipeline) -> None:
    """A negative prompt equal to the prompt makes guidance vanish, whatever its scale."""
    same = {"negative_prompt": "a", "guidance_scale": 2.0}
    other = {"negative_prompt": "b", "guidance_scale": 2.0}
    alone, twice, apart = (
        latents(pipeline, MagCache(ratios()), **options)
        for options in ({"guidance_scale": 1.0}, same, other)
    )
    assert (alone - twice).abs().max() < 1e-4
    assert (alone - apart).abs().max() > 1e-2


def test_without_guidance_there_is_one_branch(pipeline: Pipeline) -> None:
    cache = MagCache(ratios())
    latents(pipeline, cache, guidance_scale=1.0)
    assert cache.counts == {"cond": Counts(6, 10)}


@pytest.mark.parametrize("num_steps", [1, 2, 3, 7, 16])
def test_any_number_of_steps(pipeline: Pipeline, num_steps: int) -> None:
    cache = MagCache(released()[0])
    small = {"num_steps": num_steps, "num_frames": 1, "height": 16, "width": 16}
    assert latents(pipeline, cache, **small).isfinite().all()
    assert [each.calls for each in cache.counts.values()] == [num_steps] * 2
    # the first step has nothing to reuse, even where no step is retained
    assert all(each.skipped < num_steps for each in cache.counts.values())


def test_a_second_run_starts_clean(pipeline: Pipeline) -> None:
    cache = MagCache(ratios())
    first = latents(pipeline, cache)

    class CancelledError(Exception):
        pass

    def stop(step: object) -> None:
        if step.index == 3:
            raise CancelledError

    with pytest.raises(CancelledError):
        generate(pipeline, GenerateRequest("b"), on_step=stop, cache=cache)
    latents(pipeline, cache, num_steps=3, height=16, width=16)
    assert torch.equal(latents(pipeline, cache), first)
    assert cache.counts == {"cond": Counts(6, 10), "uncond": Counts(6, 10)}


@pytest.mark.parametrize("unguided", [False, True])
@pytest.mark.parametrize("cancelled_at", [None, 3])
def test_no_tensor_outlives_the_run(
    pipeline: Pipeline, unguided: bool, cancelled_at: int | None
) -> None:
    class CancelledError(Exception):
        pass

    def stop(step: object) -> None:
        if step.index == cancelled_at:
            raise CancelledError

    cache = MagCache(ratios())
    with suppress(CancelledError):
        generate(
            pipeline,
            GenerateRequest("a", unguided_last_step=unguided),
            on_step=stop,
            cache=cache,
        )
    assert all(track.residual is None for track in cache._tracks.values())
    if cancelled_at is None:
        assert cache.counts["uncond"].calls == 10 - unguided
    else:
        assert cache.counts["cond"].calls == 4


def test_low_precision_weights_skip_the_same_steps(pipeline: Pipeline) -> None:
    cache, request = MagCache(ratios()), GenerateRequest("a", guidance_scale=1.0)
    exact = generate(pipeline, request, cache=cache).latents
    state = pipeline.transformer.state_dict()
    rounded = CrossDiT(VARIANTS["debug"], dtype=torch.bfloat16).eval()
    rounded.load_state_dict(state)
    result = generate(replace(pipeline, transformer=rounded), request, cache=cache).latents
    assert cache.counts == {"cond": Counts(6, 10)}
    assert (result - exact).norm() < 0.03 * exact.norm()


def test_it_works_around_nabla(pipeline: Pipeline) -> None:
    """At P = 1 NABLA is dense attention, and what is reused is in the order of the input."""
    settings = replace(SETTINGS, sizes=((64, 64),), tile_thw=(1, 2, 2), sta_window_thw=(1, 1, 1))
    tiled = replace(pipeline, settings=settings)
    dense, cache = latents(tiled, MagCache(ratios())), MagCache(ratios())
    exact = latents(tiled, cache, attention="nabla", nabla_p=1.0)
    assert cache.counts == {"cond": Counts(6, 10), "uncond": Counts(6, 10)}
    assert (exact - dense).abs().max() < 1e-5 * dense.abs().max()
    sparse = latents(tiled, MagCache(ratios()), attention="nabla", nabla_p=0.1)
    assert (sparse - dense).abs().max() > 1e-3 * dense.abs().max()
