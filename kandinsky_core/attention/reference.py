"""The specification of attention: slow and obvious, in fp32 at least."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def attend_reference(q: Tensor, k: Tensor, v: Tensor, *, mask: Tensor | None = None) -> Tensor:
    """Materialise every score; arguments and result as in `Attend`.

    A query whose every key is masked gives zeros, never NaN.
    """
    wide = torch.promote_types(q.dtype, torch.float32)
    scores = q.to(wide) @ k.to(wide).transpose(-1, -2) / math.sqrt(q.shape[-1])  # (B, N, S, L)
    if mask is not None:
        scores = scores.masked_fill(~mask[:, None, None, :], -torch.inf)
    weights = torch.softmax(scores, dim=-1).nan_to_num(0.0)
    return (weights @ v.to(wide)).to(q.dtype)  # (B, N, S, K)
