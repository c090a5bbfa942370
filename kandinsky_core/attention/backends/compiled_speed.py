"""Where the compiled kernel pays: measured against plain PyTorch once, when it is built.

Which of the two is faster is a matter of the processor: on an AMD EPYC without AMX the kernel has
0.7 times plain PyTorch's speed at 10 % density (docs/benchmarks).
"""

from __future__ import annotations

import json
import statistics
import time
from functools import lru_cache
from pathlib import Path

import torch

from ...files import atomic_write
from ..block_map import BlockMap
from .compiled import DTYPES, attend_compiled, build, library_path
from .gathered import attend_gathered

_BLOCKS, _BLOCK, _HEADS, _HEAD_DIM, _DENSITY, _ROUNDS = 64, 64, 4, 64, 0.1, 5


def build_kernel(*, verbose: bool = False) -> Path:
    """Compile the kernel and measure it, half a minute, or find it done already.

    Returns:
        The library.

    Raises:
        ValueError: There is no C++ compiler, or it failed.
    """
    path = build(verbose=verbose)
    speeds = path.with_suffix(".json")
    if not speeds.is_file():
        with atomic_write(speeds) as part:
            part.write_text(json.dumps(_measure()), encoding="utf-8")
        _read.cache_clear()
    return path


def kernel_speeds() -> dict[str, float]:
    """How many times the speed of plain PyTorch the kernel has on this machine.

    Returns:
        By dtype ("float32", "bfloat16"); empty where nobody measured.
    """
    return _read(library_path().with_suffix(".json"))


@lru_cache(maxsize=1)
def _read(path: Path) -> dict[str, float]:
    try:
        return {str(k): float(v) for k, v in json.loads(path.read_text(encoding="utf-8")).items()}
    except (OSError, ValueError, AttributeError):
        return {}  # it only chooses between two that compute the same


@torch.inference_mode()
def _measure() -> dict[str, float]:
    """Both in turn over one random map, medians."""
    generator = torch.Generator().manual_seed(0)
    kept = torch.rand(1, _HEADS, _BLOCKS, _BLOCKS, generator=generator) < _DENSITY
    block_map = BlockMap(kept, (1, 1, _BLOCK), (1, 1, _BLOCKS))
    shape = (1, _HEADS, _BLOCKS * _BLOCK, _HEAD_DIM)
    speeds = {}
    for dtype in DTYPES:
        q, k, v = (torch.randn(shape, generator=generator).to(dtype) for _ in range(3))
        seconds: dict[str, list[float]] = {"gathered": [], "compiled": []}
        for _ in range(_ROUNDS + 1):  # the first warms up
            for name, attend in (("gathered", attend_gathered), ("compiled", attend_compiled)):
                began = time.perf_counter()
                attend(q, k, v, block_map=block_map)
                seconds[name].append(time.perf_counter() - began)
        gathered, compiled = (statistics.median(each[1:]) for each in seconds.values())
        speeds[str(dtype).removeprefix("torch.")] = round(gathered / compiled, 2)
    return speeds
