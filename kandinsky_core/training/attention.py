"""Attention for training at nano's sizes on a CPU.

Letters: B batch, N heads, S queries, L keys, K head dim.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..attention import BlockMap


def attend_products(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    mask: Tensor | None = None,
    block_map: BlockMap | None = None,
) -> Tensor:
    """Attend by two matrix products, arguments and result as in `Attend`; no block maps.

    All scores are held in memory. At a few hundred tokens that is cheap, and the backward pass is
    several times faster than the fused kernel's on CPUs.
    """
    assert block_map is None, "pretraining is dense"
    scores = (q * q.shape[-1] ** -0.5) @ k.transpose(-1, -2)  # (B, N, S, L)
    if mask is not None:
        scores = scores.masked_fill(~mask[:, None, None, :], -torch.inf)
    return scores.softmax(dim=-1) @ v  # (B, N, S, K)
