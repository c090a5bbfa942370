"""Which blocks of keys each block of queries looks at.

Letters: B batch, N heads, Q query blocks, S tokens.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from functools import cached_property

from torch import Tensor
from torch.nn import functional as F


@dataclass(frozen=True)
class BlockMap:
    """A choice of blocks per head, over tokens in tile order (see `tiles.py`).

    What is counted is counted once: `kept` must not change afterwards.
    """

    kept: Tensor = field(repr=False)
    """Boolean (B, N, Q, Q): query block (row) attends to key block (column)."""
    tile_thw: tuple[int, int, int]
    """Tokens of one block per axis (t, h, w)."""
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

    @cached_property
    def row_counts(self) -> Tensor:
        """Blocks that each row of blocks keeps, int64 (B, N, Q)."""
        return self.kept.sum(-1)

    @cached_property
    def density(self) -> Tensor:
        """Share of all blocks that each head keeps, fp32 (B, N)."""
        return self.row_counts.sum(-1).float() / self.kept.shape[-1] ** 2

    @cached_property
    def full_heads(self) -> Tensor:
        """Heads that keep every block, boolean (B, N)."""
        return self.row_counts.amin(-1) == self.kept.shape[-1]

    def part(self, some: Tensor) -> BlockMap:
        """Take the heads that a boolean (B, N) names, as a batch of one head each."""
        return BlockMap(self.kept[some][:, None], self.tile_thw, self.grid_thw)

    def token_mask(self, num_keys: int | None = None) -> Tensor:
        """Return the same choice per token; keys beyond the map's, up to `num_keys`, are always
        seen.

        Returns:
            Boolean (B, N, S, num_keys or S).
        """
        size = self.block_size
        mask = self.kept.repeat_interleave(size, -2).repeat_interleave(size, -1)
        extra = 0 if num_keys is None else num_keys - mask.shape[-1]
        return F.pad(mask, (0, extra), value=True) if extra else mask
