"""Which blocks of keys each block of queries looks at.

Letters: B batch, N heads, Q query blocks, S tokens.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from torch import Tensor


@dataclass(frozen=True)
class BlockMap:
    """A choice of blocks per head, over tokens in tile order (see `tiles.py`)."""

    kept: Tensor = field(repr=False)
    """Boolean (B, N, Q, Q): query block (row) attends to key block (column)."""
    tile_thw: tuple[int, int, int]
    """Tokens per block."""
    grid_thw: tuple[int, int, int]
    """Blocks per axis; their product is Q."""

    def __post_init__(self) -> None:
        blocks = math.prod(self.grid_thw)
        assert self.kept.ndim == 4, self.kept.shape
        assert self.kept.shape[2:] == (blocks, blocks), (self.kept.shape, self.grid_thw)

    @property
    def block_size(self) -> int:
        """Tokens in one block."""
        return math.prod(self.tile_thw)

    def density(self) -> Tensor:
        """Share of all blocks that each head keeps, fp32 (B, N)."""
        return self.kept.sum((-2, -1)).float() / self.kept.shape[-1] ** 2

    def token_mask(self, first: int = 0, last: int | None = None) -> Tensor:
        """The same choice per token, for query blocks `first` up to `last`.

        Returns:
            Boolean (B, N, (last - first) * block size, S).
        """
        rows = self.kept[:, :, first:last]
        return rows.repeat_interleave(self.block_size, -2).repeat_interleave(self.block_size, -1)
