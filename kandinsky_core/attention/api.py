"""The attention contract.

Letters: B batch, N heads, S queries, L keys, K head dim.
"""

from __future__ import annotations

from typing import Protocol

from torch import Tensor

from .block_map import BlockMap


class Attend(Protocol):
    """A function that computes softmax(q k^T / sqrt(K)) v over the keys that are admitted."""

    def __call__(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        *,
        mask: Tensor | None = None,
        block_map: BlockMap | None = None,
    ) -> Tensor:
        """Attend.

        Args:
            q: Queries (B, N, S, K).
            k: Keys (B, N, L, K).
            v: Values (B, N, L, K).
            mask: Boolean (B, L), True where a key may be attended to; None admits all.
            block_map: Blocks that each block of queries attends to, for self-attention over
                tokens in tile order; None admits all. Keys beyond those that the map counts
                (L > S: text behind the visual tokens) are attended to by every query.

        Returns:
            Tensor (B, N, S, K), dtype of q; zeros where a block map leaves a query no key.
        """
        ...
