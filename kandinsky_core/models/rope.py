"""Rotary position embedding over text positions and over the (t, h, w) token grid.

Source: arXiv 2511.14993; angles as in kandinskylab/kandinsky-5. Letters: B batch, S tokens,
N heads, K head dim.

Differs: rotation is a complex product instead of a sum over 2 x 2 matrices (bit-identical in
fp32, many times faster on CPU), and its result keeps the precision of the input, where the
reference rounds to bf16 even in fp32 (4-7e-4 on a block's output).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

MAX_PERIOD = 10000.0


def frequencies(count: int, device: torch.device | None = None) -> Tensor:
    """Return angular frequencies from 1 down towards 1 / MAX_PERIOD, fp32, shape (count,)."""
    exponents = torch.arange(count, dtype=torch.float32, device=device) / count
    return torch.exp(-math.log(MAX_PERIOD) * exponents)


def _angles(length: int, dim: int, scale: float, device: torch.device) -> Tensor:
    positions = torch.arange(length, dtype=torch.float32, device=device)
    return torch.outer(positions, frequencies(dim // 2, device)) / scale


def rope_1d(length: int, head_dim: int, device: torch.device) -> Tensor:
    """Return rotations for text positions.

    Args:
        length: Number of positions L, counted from 0.
        head_dim: Head dim K.
        device: Where to make them.

    Returns:
        Complex64 tensor (L, K/2).
    """
    angles = _angles(length, head_dim, 1.0, device)
    return torch.complex(angles.cos(), angles.sin())


def rope_3d(
    grid_thw: Sequence[int],
    axes_dims: Sequence[int],
    scale: Sequence[float],
    device: torch.device,
) -> Tensor:
    """Return rotations for a grid of visual tokens in raster order (t slowest, w fastest).

    Args:
        grid_thw: Token counts per axis.
        axes_dims: Rotary channels per axis, summing to the head dim K.
        scale: Divisor of the angles per axis; 1 keeps the pretraining spacing.
        device: Where to make them.

    Returns:
        Complex64 tensor (T*H*W, K/2).
    """
    t, h, w = grid_thw
    args_t, args_h, args_w = (
        _angles(length, dim, s, device)
        for length, dim, s in zip(grid_thw, axes_dims, scale, strict=True)
    )
    angles = torch.cat(
        [
            args_t[:, None, None].expand(t, h, w, -1),
            args_h[None, :, None].expand(t, h, w, -1),
            args_w[None, None, :].expand(t, h, w, -1),
        ],
        dim=-1,
    ).flatten(0, 2)  # (S, K/2)
    return torch.complex(angles.cos(), angles.sin())


def apply_rope(x: Tensor, rope: Tensor) -> Tensor:
    """Rotate pairs of neighbouring channels.

    Args:
        x: Queries or keys (B, S, N, K), any float dtype.
        rope: Complex rotations (S, K/2).

    Returns:
        Rotated tensor (B, S, N, K), dtype of x; the product itself runs in fp32.
    """
    pairs = torch.view_as_complex(x.float().unflatten(-1, (-1, 2)))  # (B, S, N, K/2)
    return torch.view_as_real(pairs * rope[:, None]).flatten(-2).to(x.dtype)
