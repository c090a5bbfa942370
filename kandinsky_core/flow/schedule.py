"""Which times the sampler visits.

Source: kandinskylab/kandinsky-5, commit 6e2a805: equal steps, warped by the shift.

Differs from diffusers, whose scheduler spaces N points down to a shifted minimum and shifts
them again (shift 5, 4 steps: 1, .910, .717, .024, 0; here and officially 1, .938, .833, .625, 0).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor


def shift_times(t: Tensor, shift: float) -> Tensor:
    """Warp times towards noise: shift t / (1 + (shift - 1) t).

    Args:
        t: Times in [0, 1], any shape.
        shift: Strength of the warp; 1 leaves times alone.

    Returns:
        Warped times, same shape; 0 and 1 stay.

    Raises:
        ValueError: If shift is not a positive number.
    """
    if not 0 < shift < math.inf:
        raise ValueError(f"shift must be above 0, got {shift}; 1 means no shift")
    return shift * t / (1 + (shift - 1) * t)


def timesteps(num_steps: int, shift: float, *, device: torch.device | str | None = None) -> Tensor:
    """Return the times of a sampling run, from 1 (noise) to 0 (data).

    Args:
        num_steps: Number of Euler steps, at least 1.
        shift: Warp towards noise, above 0.
        device: Where the result lives.

    Returns:
        fp32 tensor (num_steps + 1,).

    Raises:
        ValueError: If num_steps or shift is out of range.
    """
    if num_steps < 1:
        raise ValueError(f"num_steps must be at least 1, got {num_steps}")
    return shift_times(torch.linspace(1, 0, num_steps + 1, device=device), shift)
