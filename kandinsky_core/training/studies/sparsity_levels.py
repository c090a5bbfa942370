"""The settings that give a wanted sparsity: windows by counting, P by watching dense runs.

A block is kept from some P on, which follows from the coarse attention alone. So one dense run
counts, for every P at once, how many blocks NABLA would keep, and no P has to be tried.

Letters: B batch, N heads, S tokens, K head dim, Q blocks.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ...attention import BlockMap, Nabla, Tiling, coarse_attention, sliding_window

BINS = 1000
"""P is found to one part in as many."""


@dataclass(frozen=True)
class LevelCounter(Nabla):
    """NABLA that attends to everything and counts from which P on it would keep each block."""

    cdf_threshold: float = 1.0
    """Everything is attended to."""
    window_thw: tuple[int, int, int] = (1, 1, 1)
    """Window that is united with the blocks in the second row of `counts`; it is not attended by.
    """
    counts: Tensor = field(default_factory=lambda: torch.zeros(2, BINS, dtype=torch.float64))
    """Blocks by the least P that keeps them: by NABLA alone, and with the window."""

    def choose(
        self, q: Tensor, k: Tensor, tiling: Tiling, window: Tensor | None, layer: int = 0
    ) -> BlockMap:
        """Return the full map of queries and keys (B, N, S, K); counts on the way."""
        block_size = math.prod(tiling.tile_thw)
        near = sliding_window(tiling.grid_thw, self.window_thw, q.device)
        for _, rows, coarse in coarse_attention(q, k, block_size):
            values, order = coarse.sort(-1)
            levels = torch.empty_like(values).scatter_(-1, order, 1 - values.cumsum(-1))
            both = levels, levels.masked_fill(near[rows], 0)
            for counts, each in zip(self.counts, both, strict=True):
                counts += torch.histc(each.clamp(0, 1), BINS, 0, 1)
        return super().choose(q, k, tiling, window, layer)


def find_p(counts: Tensor, sparsity: float) -> float:
    """Return the largest P that leaves out at least a share of the counted blocks.

    Args:
        counts: Blocks by the least P that keeps them (BINS,).
        sparsity: Wanted share that is left out, in [0, 1].

    Returns:
        P in [0, 1], a multiple of 1 / BINS.
    """
    kept = counts.cumsum(0) / counts.sum()  # by P at the upper end of each bin
    return int((kept <= 1 - sparsity).sum()) / BINS


def find_window(grid_thw: tuple[int, int, int], sparsity: float) -> tuple[int, int, int]:
    """Return the densest window, as high as wide, that leaves out at least a share of pairs of
    tiles.

    Every tile sees its neighbours along every axis: without those in time, frames would be apart.

    Args:
        grid_thw: Tiles per axis.
        sparsity: Wanted share that is left out, in [0, 1].

    Returns:
        Width of the window per axis, in tiles.

    Raises:
        ValueError: Even a window of 3 x 3 x 3 is too dense.
    """
    best, window = 0.0, None
    for t in range(3, 2 * grid_thw[0], 2):
        for side in range(3, 2 * max(grid_thw[1:]), 2):
            density = float(sliding_window(grid_thw, (t, side, side)).double().mean())
            if best < density <= 1 - sparsity:
                best, window = density, (t, side, side)
    if window is None:
        raise ValueError(
            f"no window on {grid_thw} tiles leaves out {sparsity:.0%}: ask for less or take more "
            "tiles"
        )
    return window
