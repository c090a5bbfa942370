"""The backend used where nobody chooses one: the fastest of those that every test covers."""

from __future__ import annotations

import logging
from functools import lru_cache

import torch
from torch import Tensor

from .backends.compiled import attend_compiled, compiled_missing, fits_kernel
from .backends.compiled_speed import kernel_speeds
from .backends.dense import attend_dense
from .backends.gathered import attend_gathered
from .block_map import BlockMap

GATHER_UP_TO = {torch.float32: 0.7}
"""Share of blocks, by dtype, up to which gathering them beats masking the others on a CPU."""
GATHER_UP_TO_IN_16_BITS = 0.8

logger = logging.getLogger(__name__)


@lru_cache(maxsize=1)
def _has_kernel() -> bool:
    """Whether the compiled kernel is there; says once if it is not."""
    reason = compiled_missing()
    if reason is not None:
        logger.info("sparse attention runs in plain PyTorch; the compiled kernel: %s", reason)
    return reason is None


def _kernel_pays(dtype: torch.dtype) -> bool:
    """Whether the kernel is there, and not slower than plain PyTorch on this processor."""
    return _has_kernel() and kernel_speeds().get(str(dtype).removeprefix("torch."), 1.0) >= 1.0


def attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    mask: Tensor | None = None,
    block_map: BlockMap | None = None,
) -> Tensor:
    """Dense attention, or a map's blocks alone; arguments and result as in `Attend`.

    Whichever backend runs, the result is that of the map: where it keeps most blocks, a mask
    on dense attention is faster on a CPU than gathering.
    """
    if block_map is None or mask is not None:
        return attend_dense(q, k, v, mask=mask, block_map=block_map)
    # masks would be kept for the backward pass, all at once
    wants_grad = torch.is_grad_enabled() and any(x.requires_grad for x in (q, k, v))
    if q.device.type == "cpu" and not wants_grad:
        if fits_kernel(q, block_map) and _kernel_pays(q.dtype):
            return attend_compiled(q, k, v, block_map=block_map)
        limit = GATHER_UP_TO.get(q.dtype, GATHER_UP_TO_IN_16_BITS)
        if float(block_map.density().mean()) > limit:
            return attend_dense(q, k, v, block_map=block_map)
    return attend_gathered(q, k, v, block_map=block_map)
