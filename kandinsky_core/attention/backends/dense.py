"""Dense attention through torch's fused kernel; a block map becomes a mask, a few rows at a time.

Letters: B batch, N heads, S queries, L keys, K head dim, Q blocks.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from ..block_map import BlockMap

MASK_BYTES = 64 << 20
"""What the mask of a block map may take at a time, one row of blocks at least."""


def attend_dense(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    mask: Tensor | None = None,
    block_map: BlockMap | None = None,
) -> Tensor:
    """Compute every score; arguments and result as in `Attend`."""
    key_mask = None if mask is None else mask[:, None, None, :]  # (B, 1, 1, L)
    if block_map is None or bool(block_map.kept.all()):
        return F.scaled_dot_product_attention(q, k, v, attn_mask=key_mask)
    size = block_map.block_size
    row_bytes = q.shape[:2].numel() * size * k.shape[2] * (q.element_size() + 2)
    step = max(1, MASK_BYTES // row_bytes)
    parts = []
    for first in range(0, block_map.kept.shape[2], step):
        admitted = block_map.token_mask(first, first + step)  # (B, N, step * size, L)
        if key_mask is not None:
            admitted = admitted & key_mask
        empty = ~admitted.any(-1, keepdim=True)
        # softmax over nothing is NaN: such rows run over everything, and then give zeros.
        # Added, not boolean: torch would convert a boolean mask for every head again
        bias = torch.zeros(admitted.shape, dtype=q.dtype, device=q.device)
        bias = bias.masked_fill_(~(admitted | empty), -torch.inf)
        rows = q[:, :, first * size : (first + step) * size]
        part = F.scaled_dot_product_attention(rows, k, v, attn_mask=bias)
        parts.append(part.masked_fill(empty, 0.0))
    return torch.cat(parts, dim=2)  # (B, N, S, K)
