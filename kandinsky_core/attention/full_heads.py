"""Heads whose map keeps everything are plain dense attention, whatever computes the others.

Letters: B batch, N heads, S queries, L keys, K head dim, Q blocks, n some of the heads.
"""

from __future__ import annotations

from functools import wraps

import torch
from torch import Tensor
from torch.nn import functional as F

from .api import Attend
from .block_map import BlockMap


def full_heads_apart(attend: Attend) -> Attend:
    """Make a backend that is asked for sparse heads alone.

    Args:
        attend: Is never called without a map, nor with a head that keeps every block. Where some
            heads do, the others reach it as a batch (n, 1, S, K).

    Returns:
        An `Attend` that runs torch's fused kernel on the heads that keep every block.
    """

    @wraps(attend)
    def attend_apart(
        q: Tensor,
        k: Tensor,
        v: Tensor,
        *,
        mask: Tensor | None = None,
        block_map: BlockMap | None = None,
    ) -> Tensor:
        if block_map is None:
            return _attend_all(q, k, v, mask=mask)
        full = block_map.full_heads  # (B, N)
        num_full = int(full.sum())
        if num_full == full.numel():
            return _attend_all(q, k, v, mask=mask)
        if num_full == 0:
            return attend(q, k, v, mask=mask, block_map=block_map)
        out = torch.empty_like(q)
        for some, is_full in ((full, True), (~full, False)):
            qkv = [x[some][:, None] for x in (q, k, v)]  # (n, 1, S or L, K)
            keys = None if mask is None else mask[some.nonzero()[:, 0]]  # (n, L)
            if is_full:
                part = _attend_all(*qkv, mask=keys)
            else:
                part = attend(*qkv, mask=keys, block_map=block_map.part(some))
            out[some] = part[:, 0]
        return out

    return attend_apart


def _attend_all(q: Tensor, k: Tensor, v: Tensor, *, mask: Tensor | None) -> Tensor:
    """Attend densely; arguments and result as in `Attend`."""
    key_mask = None if mask is None else mask[:, None, None, :]  # (B, 1, 1, L)
    return F.scaled_dot_product_attention(q, k, v, attn_mask=key_mask)
