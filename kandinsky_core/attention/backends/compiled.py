"""Block-sparse attention on a CPU through a compiled kernel (`block_sparse.cpp`).

Nothing is ever compiled by itself: `build` does it once, on request (`python -m kandinsky_core
build-kernel`), and leaves a library in the user's cache that later processes find. Without it,
and for what the kernel cannot do, the gathered backend computes the same in plain PyTorch.

Letters: B batch, N heads, S tokens, K head dim, R rows of blocks over batch and heads.
"""

from __future__ import annotations

import hashlib
import logging
import os
import shutil
import sys
from functools import lru_cache
from pathlib import Path

import torch
from torch import Tensor

from ...files import cache_folder
from ..block_map import BlockMap
from ..full_heads import full_heads_apart
from .dense import attend_dense
from .gathered import attend_gathered

logger = logging.getLogger(__name__)

SOURCE = Path(__file__).with_name("block_sparse.cpp")
DTYPES = (torch.float32, torch.bfloat16)
LISTED_AT_ONCE = 32 << 20
"""Entries of block maps that are turned into lists of columns at a time."""
MULTIPLE = 16
"""Tokens of a block and head dim must be multiples: the kernel's products come in whole vectors."""


def library_path() -> Path:
    """Return the library that fits this source, torch and processor; it need not exist."""
    return cache_folder() / f"block_sparse-{_digest()}.so"


@lru_cache(maxsize=1)
def _digest() -> str:
    """Name source, torch and flags; asked for at every call, and the same all along."""
    text = SOURCE.read_bytes() + f"{torch.__version__} {_flags()}".encode()
    return hashlib.sha256(text).hexdigest()[:16]


def build(*, verbose: bool = False) -> Path:
    """Compile the kernel, half a minute, or find it built already.

    Returns:
        The library.

    Raises:
        ValueError: There is no C++ compiler, or it failed.
    """
    path = library_path()
    if path.is_file():
        return path
    from torch.utils import cpp_extension

    build_folder = path.with_suffix(".build")
    search_path = os.environ.get("PATH", "")
    try:
        build_folder.mkdir(parents=True, exist_ok=True)
        # a ninja from pip lies beside the interpreter, which may have been started by its path
        os.environ["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), search_path])
        cpp_extension.load(
            "block_sparse",
            [str(SOURCE)],
            extra_cflags=_flags(),
            extra_ldflags=["-fopenmp"],
            build_directory=str(build_folder),
            is_python_module=False,
            verbose=verbose,
        )
        (build_folder / "block_sparse.so").replace(path)
    except (OSError, RuntimeError, ImportError) as error:
        reason = _first_complaint(str(error))
        raise ValueError(
            f"the attention kernel could not be compiled ({reason}); install a C++ compiler and "
            "the extra kernel, or go on without it: the backend gathered computes the same"
        ) from error
    finally:
        os.environ["PATH"] = search_path
        shutil.rmtree(build_folder, ignore_errors=True)
    _load.cache_clear()
    return path


def compiled_missing() -> str | None:
    """Return why the kernel cannot be used here; None if it can, and then it stays so."""
    if _is_loaded():
        return None
    if not library_path().is_file():
        return "it is not built; python -m kandinsky_core build-kernel does that"
    return _load()


def _is_loaded() -> bool:
    """Return whether this process has the kernel; its file may be gone since."""
    return hasattr(torch.ops.kandinsky_core, "block_sparse")


@lru_cache(maxsize=1)
def _load() -> str | None:
    """Load the built library once; returns what went wrong."""
    try:
        torch.ops.load_library(str(library_path()))
    except OSError as error:
        return f"{library_path()} cannot be loaded ({error})"
    return None


def fits_kernel(q: Tensor, k: Tensor, block_map: BlockMap) -> bool:
    """Return whether the kernel takes these queries and keys; it has no backward pass."""
    return (
        q.device.type == "cpu"
        and k.shape[2] == q.shape[2]
        and q.dtype in DTYPES
        and block_map.block_size % MULTIPLE == 0
        and q.shape[-1] % MULTIPLE == 0
    )


@full_heads_apart
def attend_compiled(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    mask: Tensor | None = None,
    block_map: BlockMap | None = None,
) -> Tensor:
    """Compute the kept blocks only; arguments and result as in `Attend`."""
    assert block_map is not None
    if mask is not None:
        return attend_dense(q, k, v, mask=mask, block_map=block_map)
    wants_grad = torch.is_grad_enabled() and any(x.requires_grad for x in (q, k, v))
    if wants_grad or not fits_kernel(q, k, block_map):
        return attend_gathered(q, k, v, block_map=block_map)
    problem = compiled_missing()
    if problem is not None:
        raise RuntimeError(f"the compiled attention kernel cannot be used: {problem}")
    size, num_blocks = block_map.block_size, block_map.kept.shape[-1]
    heads = [x.contiguous().view(-1, num_blocks, size, x.shape[-1]) for x in (q, k, v)]
    kept = block_map.kept.flatten(0, 1)  # (B*N, Q, Q)
    counts = block_map.row_counts.flatten(0, 1)  # (B*N, Q)
    at_once = max(1, LISTED_AT_ONCE // num_blocks**2)
    parts = [
        _attend_heads(*(x[first : first + at_once] for x in (*heads, kept, counts)))
        for first in range(0, len(kept), at_once)
    ]
    return (parts[0] if len(parts) == 1 else torch.cat(parts)).view(q.shape)


def _attend_heads(q: Tensor, k: Tensor, v: Tensor, kept: Tensor, counts: Tensor) -> Tensor:
    """Attend in some heads: q, k, v (N, Q, M, K), kept (N, Q, Q), counts (N, Q) -> (N, Q, M, K)."""
    num_blocks = kept.shape[-1]
    kept, counts = kept.flatten(0, 1), counts.flatten()  # (R, Q), (R,)
    starts = torch.zeros(len(counts) + 1, dtype=torch.int64)
    torch.cumsum(counts, 0, out=starts[1:])
    rows, columns = kept.nonzero().unbind(-1)
    columns = (columns + rows // num_blocks * num_blocks).to(torch.int32)  # counted over heads
    order = counts.argsort(descending=True)
    out = torch.ops.kandinsky_core.block_sparse(
        *(x.flatten(0, 1) for x in (q, k, v)), order, starts, columns
    )
    return out.view(q.shape)


def _first_complaint(output: str) -> str:
    """Return the compiler's first error, or the first line of whatever else went wrong."""
    lines = output.strip().splitlines() or ["no message"]
    return next((line.strip() for line in lines if " error: " in line), lines[0])


def _capability() -> str:
    return torch.backends.cpu.get_cpu_capability()


def _flags() -> list[str]:
    """Return compiler flags, for the vector width that torch itself uses on this processor."""
    widths = {
        "AVX512": (
            "-mavx512f",
            "-mavx512bw",
            "-mavx512dq",
            "-mavx512vl",
            "-mavx2",
            "-mfma",
            "-mf16c",
        ),
        "AVX2": ("-mavx2", "-mfma", "-mf16c"),
    }
    shared = ["-O3", "-std=c++20", "-fopenmp"]
    capability = _capability()
    if capability not in widths:
        return [*shared, "-DCPU_CAPABILITY=DEFAULT", "-DCPU_CAPABILITY_DEFAULT"]
    names = [f"-DCPU_CAPABILITY={capability}", f"-DCPU_CAPABILITY_{capability}"]
    return [*shared, *widths[capability], *names]
