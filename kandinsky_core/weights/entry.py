"""One tensor as the header of its file describes it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch

from .packed import PACKINGS

DTYPES: dict[str, torch.dtype] = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
"""Names of the formats -> torch's; GGUF's unquantised types are called the same."""


class TensorEntry(NamedTuple):
    """One tensor as its file's header describes it."""

    dtype: str
    """The format's name of the dtype, e.g. "BF16", or of the quantisation, e.g. "Q4_K"."""
    shape: tuple[int, ...]
    file: Path
    """The file that holds it."""
    stored_name: str
    """Its name in that file."""
    offset: int | None = None
    """Where its bytes begin in a GGUF file; None in a .safetensors file, which has an index."""
    parts: tuple[TensorEntry, ...] = ()
    """The tensors of a GGUF file that it is put together from, in order; its dtype, name and offset
    are those of the first."""
    axis: int = 0
    """Along which the parts follow one another."""

    @property
    def size(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)

    @property
    def is_packed(self) -> bool:
        """Whether its elements lie in blocks that share a scale (GGUF's quantised types)."""
        return self.offset is not None and self.dtype not in DTYPES

    @property
    def packing(self) -> str | None:
        """The key of `PACKINGS` by which a matrix can be unpacked row by row; None if it cannot."""
        kinds = {self.dtype, *(part.packing for part in self.parts)}
        if not self.is_packed or kinds != {self.dtype} or len(self.shape) != 2 or self.axis != 0:
            return None
        layout = PACKINGS.get(self.dtype)
        return self.dtype if layout and self.shape[1] % layout.block == 0 else None

    def bytes_as(self, dtype: torch.dtype) -> int:
        """Return what it takes in memory: packed where that is possible, else in a dtype."""
        if self.packing is None:
            return self.size * dtype.itemsize
        return self.shape[0] * PACKINGS[self.packing].packed_columns(self.shape[1])

    @classmethod
    def join(cls, parts: Sequence[TensorEntry], axis: int) -> TensorEntry:
        """Return the tensors of one shape, one after the other along an axis, as one."""
        shape = list(parts[0].shape)
        shape[axis] *= len(parts)
        return parts[0]._replace(shape=tuple(shape), parts=tuple(parts), axis=axis)
