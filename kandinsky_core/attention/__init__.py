"""Attention behind one contract: `attend(q, k, v, *, mask=None, block_map=None)`."""

from .api import Attend
from .auto import attend
from .backends.compiled import attend_compiled
from .backends.compiled_speed import build_kernel, kernel_speeds
from .backends.dense import attend_dense
from .backends.gathered import attend_gathered, gathered_bytes
from .block_map import BlockMap
from .choice import BACKENDS, load_backend, missing
from .nabla import MapReport, Nabla, coarse_attention, map_bytes, top_p_blocks
from .reference import attend_reference
from .tiles import Tiling, sliding_window

__all__ = [
    "BACKENDS",
    "Attend",
    "BlockMap",
    "MapReport",
    "Nabla",
    "Tiling",
    "attend",
    "attend_compiled",
    "attend_dense",
    "attend_gathered",
    "attend_reference",
    "build_kernel",
    "coarse_attention",
    "gathered_bytes",
    "kernel_speeds",
    "load_backend",
    "map_bytes",
    "missing",
    "sliding_window",
    "top_p_blocks",
]
