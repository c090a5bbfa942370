"""Where the compiled kernel pays: measured against plain PyTorch once, when it is built.

Which is faster is a matter of the processor: on an AMD EPYC without AMX the kernel has 0.7 times
plain PyTorch's speed at 10 % density (docs/benchmarks); and of the map: where it keeps nearly all
blocks, dense attention under a mask is faster.
"""

from __future__ import annotations

import json
import statistics
import time
from functools import lru_cache
from pathlib import Path

import torch

from ...files import write_text
from ..block_map import BlockMap
from .compiled import DTYPES, attend_compiled, build, library_path
from .dense import attend_dense
from .gathered import attend_gathered

_BLOCKS, _BLOCK, _HEADS, _HEAD_DIM, _ROUNDS = 64, 64, 4, 64, 5
_SPARSE, _NEARLY_DENSE = 0.1, 0.9
"""Densities of the maps that are measured."""


def build_kernel(*, verbose: bool = False) -> Path:
    """Compile the kernel and measure it, half a minute, or find it done already.

    Returns:
        The library.

    Raises:
        ValueError: There is no C++ compiler, or it failed.
    """
    path = build(verbose=verbose)
    if not kernel_limits():
        write_text(_measured_path(), json.dumps(_measure()))
        _read.cache_clear()
    return path


def kernel_speeds() -> dict[str, float]:
    """Return how many times the speed of plain PyTorch the kernel has on this machine, at 10 %
    density.

    Returns:
        By dtype ("float32", "bfloat16"); empty where nobody measured.
    """
    return _read(_measured_path()).get("speed", {})


def kernel_limits() -> dict[str, float]:
    """Return up to which density the kernel is faster than dense attention on this machine.

    Returns:
        By dtype ("float32", "bfloat16"), in [0, 1]; empty where nobody measured.
    """
    return _read(_measured_path()).get("up_to", {})


def _measured_path() -> Path:
    """Name the file beside the library; an earlier version wrote less into the name without
    "measured"."""
    return library_path().with_suffix(".measured.json")


@lru_cache(maxsize=1)
def _read(path: Path) -> dict[str, dict[str, float]]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        return {
            name: {str(dtype): float(value) for dtype, value in found[name].items()}
            for name in ("speed", "up_to")
        }
    except (OSError, ValueError, AttributeError, KeyError, TypeError):
        return {}  # it only chooses between backends that compute the same


@torch.inference_mode()
def _measure() -> dict[str, dict[str, float]]:
    """Time all in turn over two random maps; medians."""
    generator = torch.Generator().manual_seed(0)
    sparse, nearly_dense = (
        BlockMap(
            torch.rand(1, _HEADS, _BLOCKS, _BLOCKS, generator=generator) < density,
            (1, 1, _BLOCK),
            (1, 1, _BLOCKS),
        )
        for density in (_SPARSE, _NEARLY_DENSE)
    )
    candidates = (
        (attend_gathered, sparse),
        (attend_compiled, sparse),
        (attend_compiled, nearly_dense),
        (attend_dense, nearly_dense),
    )
    shape = (1, _HEADS, _BLOCKS * _BLOCK, _HEAD_DIM)
    speeds, limits = {}, {}
    for dtype in DTYPES:
        q, k, v = (torch.randn(shape, generator=generator).to(dtype) for _ in range(3))
        seconds: list[list[float]] = [[] for _ in candidates]
        for _ in range(_ROUNDS + 1):  # the first warms up
            for (attend, block_map), taken in zip(candidates, seconds, strict=True):
                began = time.perf_counter()
                attend(q, k, v, block_map=block_map)
                taken.append(time.perf_counter() - began)
        gathered, compiled, compiled_high, dense = (statistics.median(x[1:]) for x in seconds)
        name = str(dtype).removeprefix("torch.")
        speeds[name] = round(gathered / compiled, 2)
        limits[name] = round(_break_even(compiled, compiled_high, dense), 2)
    return {"speed": speeds, "up_to": limits}


def _break_even(at_sparse: float, at_nearly_dense: float, dense: float) -> float:
    """Return the density at which the kernel, whose time grows with density, takes as long as
    dense."""
    per_density = (at_nearly_dense - at_sparse) / (_NEARLY_DENSE - _SPARSE)
    if per_density <= 0:
        return float(at_sparse <= dense)
    return min(max(_SPARSE + (dense - at_sparse) / per_density, 0.0), 1.0)
