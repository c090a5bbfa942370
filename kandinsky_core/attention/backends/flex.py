"""Block-sparse attention through torch's FlexAttention, compiled.

The blocks are handed over as partial ones with a mask that looks the map up. Handing them over
as full blocks without a mask, as the reference does, is silently dense where the call is not
compiled, and does not compile on a CPU.

One head runs at a time: lists of blocks then take little memory, and neither another number of
heads nor another map compiles anew. The first call compiles, and so does every new dtype, head
dim, and the second length, which makes the length a variable.
"""

from __future__ import annotations

import inspect
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor

from ..api import Attend
from ..block_map import BlockMap
from ..full_heads import full_heads_apart
from .dense import attend_dense
from .gathered import attend_gathered

SMALLEST_BLOCK = 16
"""Tokens; the compiled kernels take powers of two from here."""
CUDA_TILES = {
    "BLOCK_M": 64,
    "BLOCK_N": 64,
    "BLOCK_M1": 32,
    "BLOCK_N1": 64,
    "BLOCK_M2": 64,
    "BLOCK_N2": 32,
}
"""Tokens that a CUDA kernel takes at a time, forward and (1, 2) backward. Blocks must be multiples,
and Inductor's own choice, up to 128, is not made with regard to them."""


def flex_missing() -> str | None:
    """Return why there is no FlexAttention here; None if there is."""
    # importing it takes seconds, so it is only looked for
    if find_spec("torch.nn.attention.flex_attention") is None:
        return f"torch {torch.__version__} has no FlexAttention"
    return None


def fits_flex(q: Tensor, k: Tensor, block_map: BlockMap) -> bool:
    """Return whether FlexAttention takes these blocks and keys."""
    size = block_map.block_size
    is_power = size & (size - 1) == 0
    return is_power and size >= SMALLEST_BLOCK and k.shape[2] == q.shape[2]


def make_attend_flex() -> Attend:
    """Prepare the compiled function.

    Returns:
        An `Attend`. It hands on what FlexAttention cannot do, to backends that compute the
        same: a mask of keys, heads that keep everything, keys beyond the map's, blocks that are
        not powers of two, and gradients on a CPU. It raises RuntimeError where torch cannot
        compile.
    """
    from torch.nn.attention.flex_attention import flex_attention

    # whole: past its limit of recompilations torch would run it uncompiled, with every score
    compiled: Any = torch.compile(flex_attention, fullgraph=True)

    @full_heads_apart
    def attend_flex(
        q: Tensor,
        k: Tensor,
        v: Tensor,
        *,
        mask: Tensor | None = None,
        block_map: BlockMap | None = None,
    ) -> Tensor:
        assert block_map is not None
        if mask is not None:
            return attend_dense(q, k, v, mask=mask, block_map=block_map)
        wants_grad = torch.is_grad_enabled() and any(x.requires_grad for x in (q, k, v))
        if not fits_flex(q, k, block_map) or (wants_grad and q.device.type == "cpu"):
            return attend_gathered(q, k, v, block_map=block_map)
        size, options = block_map.block_size, _kernel_options(q, block_map)
        outs = []
        maps = zip(block_map.kept.flatten(0, 1), block_map.row_counts.flatten(0, 1), strict=True)
        for head, (kept, counts) in enumerate(maps):
            place = divmod(head, q.shape[1])
            try:
                out = compiled(
                    *(x[place][None, None] for x in (q, k, v)),  # (1, 1, S, K)
                    block_mask=_block_mask(kept, counts, size, wants_grad),
                    kernel_options=options,
                )[0, 0]
            except torch.OutOfMemoryError:
                raise
            except Exception as error:  # compilers fail in ways of their own
                reason = (str(error).strip() or type(error).__name__).splitlines()[0]
                raise RuntimeError(
                    f"FlexAttention does not compile here ({reason}); choose the attention backend "
                    "auto or gathered, which compute the same"
                ) from error
            empty = counts == 0  # (Q,)
            outs.append(out.masked_fill(empty.repeat_interleave(size)[:, None], 0.0))
        return torch.stack(outs).view(q.shape)

    return attend_flex


def _kernel_options(q: Tensor, block_map: BlockMap) -> dict[str, int] | None:
    """Return the tiles that divide the blocks; None leaves them to Inductor."""
    if q.device.type == "cpu":
        return None
    return {name: min(tokens, block_map.block_size) for name, tokens in CUDA_TILES.items()}


def _block_mask(kept: Tensor, counts: Tensor, size: int, wants_grad: bool) -> Any:
    """Return FlexAttention's form of a head's map (Q, Q), whose rows keep `counts` (Q,) blocks."""
    from torch.nn.attention.flex_attention import BlockMask

    def looked_up(_batch: Tensor, _head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return kept[query // size, key // size]

    columns = kept.byte().argsort(dim=-1, descending=True, stable=True).to(torch.int32)
    options: dict[str, Any] = {"BLOCK_SIZE": size, "mask_mod": looked_up}
    # the same lists by columns, for a backward pass; older ones always make them
    if "compute_q_blocks" in inspect.signature(BlockMask.from_kv_blocks).parameters:
        options["compute_q_blocks"] = wants_grad
    return BlockMask.from_kv_blocks(
        counts.to(torch.int32)[None, None], columns[None, None], **options
    )
