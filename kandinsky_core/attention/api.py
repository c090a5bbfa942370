"""The attention contract and its default backend.

Letters: B batch, N heads, S queries, L keys, K head dim.
"""

from __future__ import annotations

from typing import Protocol

from torch import Tensor
from torch.nn import functional as F


class Attend(Protocol):
    """A function that computes softmax(q k^T / sqrt(K)) v."""

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, *, mask: Tensor | None = None) -> Tensor:
        """Attend.

        Args:
            q: Queries (B, N, S, K).
            k: Keys (B, N, L, K).
            v: Values (B, N, L, K).
            mask: Boolean (B, L), True where a key may be attended to; None admits all.

        Returns:
            Tensor (B, N, S, K), dtype of q.
        """
        ...


def attend(q: Tensor, k: Tensor, v: Tensor, *, mask: Tensor | None = None) -> Tensor:
    """Dense attention through torch's fused kernel; arguments and result as in `Attend`."""
    key_mask = None if mask is None else mask[:, None, None, :]  # (B, 1, 1, L)
    return F.scaled_dot_product_attention(q, k, v, attn_mask=key_mask)
