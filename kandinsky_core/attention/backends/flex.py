"""Block-sparse attention through torch's FlexAttention, compiled.

The blocks are handed over as partial ones with a mask that looks the map up. Handing them over
as full blocks without a mask, as the reference does, is silently dense where the call is not
compiled, and does not compile on a CPU. The first call compiles, and so does every new number
of heads, dtype or length; new maps do not.
"""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor

from ..api import Attend
from ..block_map import BlockMap
from .dense import attend_dense
from .gathered import attend_gathered

SMALLEST_BLOCK = 16
"""Tokens; the compiled kernels take powers of two from here."""


def flex_missing() -> str | None:
    """Why there is no FlexAttention here; None if there is."""
    # importing it takes seconds, so it is only looked for
    if find_spec("torch.nn.attention.flex_attention") is None:
        return f"torch {torch.__version__} has no FlexAttention"
    return None


def make_attend_flex() -> Attend:
    """Prepare the compiled function.

    Returns:
        An `Attend`. It hands on what FlexAttention cannot do, to backends that compute the
        same: a mask of keys, maps that keep everything, keys beyond the map's, blocks that are
        not powers of two, and gradients on a CPU.
    """
    from torch.nn.attention.flex_attention import flex_attention

    compiled: Any = torch.compile(flex_attention)

    def attend_flex(
        q: Tensor,
        k: Tensor,
        v: Tensor,
        *,
        mask: Tensor | None = None,
        block_map: BlockMap | None = None,
    ) -> Tensor:
        if block_map is None or mask is not None or bool(block_map.kept.all()):
            return attend_dense(q, k, v, mask=mask, block_map=block_map)
        size = block_map.block_size
        wants_grad = torch.is_grad_enabled() and any(x.requires_grad for x in (q, k, v))
        odd = size < SMALLEST_BLOCK or size & (size - 1)
        if odd or k.shape[2] != q.shape[2] or (wants_grad and q.device.type == "cpu"):
            return attend_gathered(q, k, v, block_map=block_map)
        out = compiled(q, k, v, block_mask=_block_mask(block_map))
        empty = ~block_map.kept.any(-1)  # (B, N, Q)
        return out.masked_fill(empty.repeat_interleave(size, -1)[..., None], 0.0)

    return attend_flex


def _block_mask(block_map: BlockMap) -> Any:
    from torch.nn.attention.flex_attention import BlockMask

    kept, size = block_map.kept, block_map.block_size

    def looked_up(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return kept[batch, head, query // size, key // size]

    columns = torch.empty(kept.shape, dtype=torch.int32, device=kept.device)
    # a head at a time: sorting yields 64-bit indices
    for of_head, out in zip(kept.flatten(0, 1), columns.flatten(0, 1), strict=True):
        out.copy_(of_head.byte().argsort(dim=-1, descending=True, stable=True))
    counts = kept.sum(-1, dtype=torch.int32)
    return BlockMask.from_kv_blocks(counts, columns, BLOCK_SIZE=size, mask_mod=looked_up)
