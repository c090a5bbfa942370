"""The specification of attention: slow and obvious, in fp32 at least."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .block_map import BlockMap


def attend_reference(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    mask: Tensor | None = None,
    block_map: BlockMap | None = None,
) -> Tensor:
    """Materialise every score; arguments and result as in `Attend`.

    A query whose every key is masked gives zeros, never NaN, and so do its gradients.
    """
    wide = torch.promote_types(q.dtype, torch.float32)
    scores = q.to(wide) @ k.to(wide).transpose(-1, -2) / math.sqrt(q.shape[-1])  # (B, N, S, L)
    admitted = torch.ones_like(scores, dtype=torch.bool)
    if mask is not None:
        admitted = admitted & mask[:, None, None, :]
    if block_map is not None:
        admitted = admitted & block_map.token_mask(k.shape[2])
    empty = ~admitted.any(-1, keepdim=True)
    # softmax over nothing is NaN: such rows run over everything, and then count for nothing
    weights = torch.softmax(scores.masked_fill(~(admitted | empty), -torch.inf), dim=-1)
    return (weights.masked_fill(empty, 0.0) @ v.to(wide)).to(q.dtype)  # (B, N, S, K)
