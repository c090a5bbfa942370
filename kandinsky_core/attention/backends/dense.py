"""Dense attention through torch's fused kernel; a block map becomes a mask.

All queries of a block see the same keys, so each block of queries is an entry of a batch with
one row of mask: the mask is as much smaller than the scores as a block is large.
Letters: B batch, N heads, S queries, L keys, K head dim, Q blocks, M tokens per block, r blocks
of queries at a time.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from ..block_map import BlockMap
from ..full_heads import full_heads_apart

WORK_BYTES = 64 << 20
"""What the masks, and the gradients of keys and values, may take at a time."""


@full_heads_apart
def attend_dense(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    mask: Tensor | None = None,
    block_map: BlockMap | None = None,
) -> Tensor:
    """Compute every score; arguments and result as in `Attend`."""
    assert block_map is not None
    outs = []
    for batch in range(q.shape[0]):
        keys = None if mask is None else mask[batch]
        for head in range(q.shape[1]):
            place = batch, head
            kept = block_map.kept[place]
            outs.append(_attend_head(q[place], k[place], v[place], kept, keys))
    return torch.stack(outs).view(q.shape)


def _attend_head(q: Tensor, k: Tensor, v: Tensor, kept: Tensor, mask: Tensor | None) -> Tensor:
    """Attend in one head: q (S, K), k and v (L, K), kept (Q, Q), mask (L,) -> (S, K)."""
    blocks, length = kept.shape[0], k.shape[0]
    size = q.shape[0] // blocks
    queries = q.unflatten(0, (blocks, size))[:, None]  # (Q, 1, M, K)
    wants_grad = torch.is_grad_enabled() and any(x.requires_grad for x in (q, k, v))
    # expanded keys and values take nothing, but each copy has its own gradient
    row_bytes = length * q.element_size() * (2 + 2 * k.shape[1] * wants_grad)
    step = max(1, WORK_BYTES // row_bytes)
    parts = []
    for first in range(0, blocks, step):
        rows = slice(first, first + step)
        admitted = kept[rows].repeat_interleave(size, -1)  # (r, S)
        admitted = F.pad(admitted, (0, length - admitted.shape[-1]), value=True)  # (r, L)
        if mask is not None:
            admitted = admitted & mask
        empty = ~admitted.any(-1, keepdim=True)
        # softmax over nothing is NaN: such rows run over everything, and then give zeros
        bias = torch.zeros(admitted.shape, dtype=q.dtype, device=q.device)
        bias = bias.masked_fill_(~(admitted | empty), -torch.inf)
        part = F.scaled_dot_product_attention(
            queries[rows],
            *(x.expand(len(bias), 1, *x.shape) for x in (k, v)),
            attn_mask=bias[:, None, None],
        )  # (r, 1, M, K)
        parts.append(part.masked_fill(empty[..., None, None], 0.0))
    return torch.cat(parts).flatten(0, 2)
