"""Classifier-free guidance."""

from __future__ import annotations

from torch import Tensor


def guide(cond: Tensor, uncond: Tensor, scale: float) -> Tensor:
    """Return uncond + scale (cond - uncond); scale 1 gives cond, 0 gives uncond."""
    return uncond.lerp(cond, scale)
