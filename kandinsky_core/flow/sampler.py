"""Euler integration from noise to data, as a generator of steps.

The caller owns progress, preview and cancellation: it looks at each `Step`, and stops iterating
when it has had enough. Letters: B batch, C channels, T H W latent grid.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

import torch
from torch import Tensor

from ..seeds import check_seed
from .condition import VisualCondition
from .path import predict_latents

Velocity = Callable[[Tensor, Tensor], Tensor]
"""(x_t (B, C, T, H, W), t scalar tensor) -> velocity of the same shape."""

PLAIN = VisualCondition()


@dataclass(frozen=True)
class Step:
    """One finished step of a sampling run."""

    index: int
    """Steps finished before this one."""
    num_steps: int
    """Steps of the whole run."""
    t: float
    """Time the step started from, in [0, 1]."""
    t_next: float
    """Time it arrived at."""
    latents: Tensor = field(repr=False)
    """x at t_next (B, C, T, H, W), model space; the result when the last step is done."""
    denoised: Tensor = field(repr=False)
    """What the clean latents look like from here, for previews; same shape."""


def make_noise(shape: Sequence[int], seed: int) -> Tensor:
    """Draw the starting noise, always on the CPU in fp32 so that a seed means one thing.

    The order of the numbers is that of ComfyUI's own samplers. The reference draws on CUDA in
    bf16 with channels last: its clips cannot be had from the same seed.

    Args:
        shape: (B, C, T, H, W).
        seed: From 0 to `MOST_SEED`.

    Returns:
        Standard normal fp32 tensor.

    Raises:
        ValueError: The seed is out of range.
    """
    check_seed(seed)
    return torch.randn(tuple(shape), generator=torch.Generator().manual_seed(seed))


@torch.no_grad()
def sample(
    velocity: Velocity,
    noise: Tensor,
    timesteps: Tensor,
    *,
    condition: VisualCondition = PLAIN,
) -> Iterator[Step]:
    """Integrate dx/dt = velocity with Euler steps.

    Args:
        velocity: The (guided) network.
        noise: x at timesteps[0], (B, C, T, H, W) in model space.
        timesteps: Falling times (steps + 1,), usually from 1 to 0.
        condition: Given frames are put in place before every step and at the end.

    Yields:
        One `Step` per interval of `timesteps`.

    Raises:
        ValueError: If timesteps are not at least two falling numbers in [0, 1].
    """
    times = timesteps.to(noise.device, torch.float32)
    falling = times.ndim == 1 and len(times) >= 2 and bool((times.diff() < 0).all())
    if not (falling and times[0] <= 1 and times[-1] >= 0):
        raise ValueError(
            f"timesteps must be at least two falling numbers in [0, 1], got {timesteps.tolist()}"
        )
    x = noise.float()
    for index, (t, t_next) in enumerate(pairwise(times)):
        x = condition.impose(x)
        v = velocity(x, t)
        denoised = condition.impose(predict_latents(x, v, t))
        x = condition.impose(x + (t_next - t) * v)
        yield Step(index, len(times) - 1, t.item(), t_next.item(), x, denoised)
