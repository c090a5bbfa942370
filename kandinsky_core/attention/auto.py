"""The backend used where nobody chooses one, by device, dtype, size and density.

The figures for CPUs are measured (docs/benchmarks). Those for other devices follow from counts of
bytes and operations: gathering reads and writes keys and values three times, where the kernels
of FlexAttention and fastvideo-kernel read them once.
"""

from __future__ import annotations

from collections.abc import Iterator
from importlib.util import find_spec

import torch
from torch import Tensor

from .api import Attend
from .backends.compiled import attend_compiled, compiled_missing, fits_kernel
from .backends.compiled_speed import kernel_limits, kernel_speeds
from .backends.dense import attend_dense
from .backends.flex import fits_flex, flex_missing, make_attend_flex
from .backends.gathered import attend_gathered
from .backends.packages import PACKAGES, fits_block_sparse
from .backends.tried import Tried
from .block_map import BlockMap

GATHER_UP_TO = {torch.float32: 0.7}
"""Share of blocks, by dtype, up to which gathering them beats masking the others on a CPU."""
GATHER_UP_TO_IN_16_BITS = 0.8
GATHER_UP_TO_ELSEWHERE = 0.3
"""The same on other devices."""
KERNEL_FROM = 16_384
"""Tokens from which a CUDA kernel is worth loading, or half a minute of compiling."""


def _load_compiled() -> Attend:
    reason = compiled_missing()
    if reason is not None:
        raise ImportError(reason)
    return attend_compiled


def _load_flex() -> Attend:
    reason = flex_missing()
    if reason is None and find_spec("triton") is None:
        reason = "triton is not installed"
    if reason is not None:
        raise ImportError(reason)
    return make_attend_flex()


def _load_block_sparse() -> Attend:
    package = PACKAGES["block_sparse"]
    return package.adapt(package.load(), attend_gathered)


COMPILED = Tried("the compiled kernel", _load_compiled)
FLEX = Tried("FlexAttention", _load_flex)
BLOCK_SPARSE = Tried("fastvideo-kernel", _load_block_sparse)


def attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    mask: Tensor | None = None,
    block_map: BlockMap | None = None,
) -> Tensor:
    """Attend to everything, or to a map's blocks alone; arguments and result as in `Attend`.

    Whichever backend runs, the result is that of the map: where it keeps most blocks, a mask
    on dense attention is faster than gathering. Gradients are always gathered's: what fails only
    in a backward pass could not be replaced by another.
    """
    if block_map is None or mask is not None:
        return attend_dense(q, k, v, mask=mask, block_map=block_map)
    # masks would be kept for the backward pass, all at once
    if torch.is_grad_enabled() and any(x.requires_grad for x in (q, k, v)):
        return attend_gathered(q, k, v, block_map=block_map)
    density = _density(block_map)
    if density < 1:
        for backend in _kernels(q, k, block_map, density):
            out = backend(q, k, v, block_map=block_map)
            if out is not None:
                return out
    sparse = density <= _gather_up_to(q)
    return (attend_gathered if sparse else attend_dense)(q, k, v, block_map=block_map)


def _density(block_map: BlockMap) -> float:
    """Return the mean share of blocks of the heads that do not keep all; 1 if there are none."""
    densities = [share for share in block_map.density.flatten().tolist() if share < 1]
    return sum(densities) / len(densities) if densities else 1.0


def _kernels(q: Tensor, k: Tensor, block_map: BlockMap, density: float) -> Iterator[Tried]:
    """Yield the backends that beat those in plain PyTorch at this, the best first."""
    if q.device.type == "cpu":
        if fits_kernel(q, k, block_map) and COMPILED.is_there():
            name = str(q.dtype).removeprefix("torch.")
            # built before these were measured: nothing is known against it
            up_to = kernel_limits().get(name, _gather_up_to(q))
            if kernel_speeds().get(name, 1.0) >= 1 and density <= up_to:
                yield COMPILED
    elif q.device.type == "cuda" and q.shape[2] >= KERNEL_FROM:
        if fits_block_sparse(q, k, block_map):
            yield BLOCK_SPARSE
        if fits_flex(q, k, block_map):
            yield FLEX


def _gather_up_to(q: Tensor) -> float:
    if q.device.type == "cpu":
        return GATHER_UP_TO.get(q.dtype, GATHER_UP_TO_IN_16_BITS)
    return GATHER_UP_TO_ELSEWHERE
