"""MagCache and its calibration against diffusers' hooks, on the same network."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import pytest
import torch
from diffusers import Kandinsky5Transformer3DModel
from diffusers.hooks.mag_cache import MagCacheConfig, apply_mag_cache, nearest_interp
from torch import Tensor, nn

from kandinsky_core.caching import Calibration, MagCache, MagRatios
from kandinsky_core.family.config import DiTConfig
from kandinsky_core.family.variants import VARIANTS
from kandinsky_core.flow import sample, timesteps
from kandinsky_core.models import CrossDiT

MakePair = Callable[[DiTConfig], tuple[CrossDiT, Kandinsky5Transformer3DModel]]
CONFIG = VARIANTS["debug"]
NUM_STEPS = 10


def hook(model: Kandinsky5Transformer3DModel, config: MagCacheConfig) -> None:
    """Apply diffusers' MagCache, which does not look under the name of Kandinsky's blocks."""
    holder = nn.Module()
    holder.transformer_blocks = model.visual_transformer_blocks
    apply_mag_cache(holder, config)


def run_both(
    ours: CrossDiT, theirs: Callable[..., Tensor], cache: MagCache | Calibration
) -> tuple[Tensor, Tensor]:
    """Return the last latents of the same run through both networks, without guidance."""
    generator = torch.Generator().manual_seed(1)
    noise = torch.randn(1, 4, 3, 4, 6, generator=generator)
    tokens = torch.randn(1, 5, CONFIG.text_dim, generator=generator)
    pooled = torch.randn(1, CONFIG.pooled_dim, generator=generator)

    def network_input(x: Tensor) -> Tensor:
        return torch.cat([x, torch.zeros_like(x), torch.zeros_like(x[:, :1])], dim=1)

    def our_velocity(x: Tensor, t: Tensor) -> Tensor:
        around = cache.around("cond")
        return ours(network_input(x), t.expand(1), tokens, pooled, around_blocks=around)

    def their_velocity(x: Tensor, t: Tensor) -> Tensor:
        return theirs(network_input(x), t.expand(1), tokens, pooled)

    cache.begin(NUM_STEPS)
    times = timesteps(NUM_STEPS, 3.0)
    our_run, their_run = (
        list(sample(velocity, noise, times))[-1].latents
        for velocity in (our_velocity, their_velocity)
    )
    return our_run, their_run


@pytest.mark.usefixtures("keep_fp32_rotation")
def test_calibration_is_diffusers(
    make_pair: MakePair,
    run_upstream: Callable[..., Tensor],
    capsys: pytest.CaptureFixture[str],
) -> None:
    ours, theirs = make_pair(CONFIG)
    hook(theirs, MagCacheConfig(calibrate=True, num_inference_steps=NUM_STEPS))
    calibration = Calibration()
    run_both(ours, partial(run_upstream, theirs), calibration)
    printed = capsys.readouterr().out.strip().splitlines()[-1]
    expected = [float(number) for number in printed.strip("[]").split(",")]
    assert len(expected) == NUM_STEPS
    # diffusers lists the first step's 1 and does not round to five digits
    measured = calibration.ratios("a test").cond
    assert [1.0, *measured] == pytest.approx(expected, abs=1e-5)


@pytest.mark.usefixtures("keep_fp32_rotation")
@pytest.mark.parametrize("threshold", [0.06, 0.12, 0.3])
def test_a_run_with_skips_is_diffusers(
    make_pair: MakePair, run_upstream: Callable[..., Tensor], threshold: float
) -> None:
    """Ten steps, of which both retain the first two."""
    column = (0.9, 1.12, 1.08, 1.03, 0.98, 1.02, 1.01, 0.97, 0.9)
    ours, theirs = make_pair(CONFIG)
    hook(
        theirs,
        MagCacheConfig(
            threshold=threshold,
            max_skip_steps=2,
            retention_ratio=0.2,
            num_inference_steps=NUM_STEPS,
            mag_ratios=[1.0, *column],
        ),
    )
    cache = MagCache(MagRatios(column, None, "a test"), threshold=threshold)
    with_skips, expected = run_both(ours, partial(run_upstream, theirs), cache)
    assert cache.counts["cond"].skipped > 0
    assert (with_skips - expected).abs().max() < 1e-5 * expected.abs().max()

    never = MagCache(MagRatios(column, None, "a test"), threshold=0.0)
    in_full, _ = run_both(ours, partial(run_upstream, theirs), never)
    assert (with_skips - in_full).abs().max() > 1e-2 * expected.abs().max()


@pytest.mark.parametrize("length", [2, 13, 50])
def test_tables_are_stretched_as_in_diffusers(length: int) -> None:
    column = tuple(1 + step / 1000 for step in range(1, length))
    ratios = MagRatios(column, None, "a test")
    for num_steps in range(1, 101):
        theirs = nearest_interp(torch.tensor([1.0, *column], dtype=torch.float64), num_steps)
        stride = (length - 1) / max(num_steps - 1, 1)
        ties = [step for step in range(num_steps) if abs(step * stride % 1 - 0.5) < 1e-4]
        ours = ratios.for_steps("cond", num_steps)
        # diffusers places steps in fp32, the reference in fp64: halves may fall either way
        for step in set(range(num_steps)) - set(ties):
            assert ours[step] == theirs[step].item()
