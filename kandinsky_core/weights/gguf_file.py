"""GGUF files: the header by ourselves, block sizes and unpacking from the package gguf.

The header is a list of key-value pairs, then of tensors (name, dimensions innermost first, type,
offset). The values are mostly a tokenizer's hundred thousands of strings: they are passed over.
Source: the GGUF specification of ggml, versions 2 and 3. Two conventions lie on top of it:
ComfyUI's converters write tensors whose rows do not divide into blocks in another shape and keep
the true one under "comfy.gguf.orig_shape."; llama.cpp has its own names, see `llama_names.py`.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from torch import Tensor

from ..errors import CheckpointError, MissingExtraError, import_extra
from .entry import DTYPES, TensorEntry
from .llama_names import rename_qwen, rename_vision
from .packed import PACKINGS

ARCHITECTURE = "general.architecture"
"""Metadata entry: which model the file says it is."""
QWEN_ARCHITECTURE = "qwen2vl"
"""What the language model of Qwen2.5-VL says it is."""
VISION_ARCHITECTURE = "clip"
"""What every vision tower that llama.cpp keeps apart from its language model says it is."""
QWEN_PROJECTOR = "qwen2.5vl_merger"
"""Which of them is Qwen2.5-VL's; see `projector`."""

_SHAPE_KEY = "comfy.gguf.orig_shape."
_DEFAULT_ALIGNMENT = 32
_SCALARS = {**dict(enumerate("BbHhIif?")), 10: "Q", 11: "q", 12: "d"}
"""Number of a value's type -> its code in `struct`."""
_STRING, _ARRAY = 8, 9
_MAX_ARRAY = 8  # longer ones are tokens, not shapes
_MAX_TEXT = 1 << 20
_CHUNK = 1 << 20  # elements unpacked at a time, so that fp32 copies stay small


class _DamagedError(Exception):
    """The header holds something that no GGUF file does."""


class _Cursor:
    """Reads little-endian values off a file; EOFError where it ends too early."""

    def __init__(self, file: BinaryIO, size: int) -> None:
        self._file = file
        self._size = size

    @property
    def position(self) -> int:
        return self._file.tell()

    def number(self, code: str) -> Any:
        (value,) = struct.unpack("<" + code, self._bytes(struct.calcsize("<" + code)))
        return value

    def text(self) -> str:
        length = self.number("Q")
        if length > _MAX_TEXT:
            self.skip(length)
            return ""
        try:
            return self._bytes(length).decode("utf-8")
        except UnicodeDecodeError:
            return ""  # a token; names and keys are ASCII

    def skip(self, count: int) -> None:
        if self.position + count > self._size:
            raise EOFError
        self._file.seek(count, 1)

    def value(self, kind: int) -> Any:
        """Return one metadata value; None for arrays of strings and long arrays."""
        if kind in _SCALARS:
            return self.number(_SCALARS[kind])
        if kind == _STRING:
            return self.text()
        if kind != _ARRAY:
            raise _DamagedError(f"a value of the unknown type {kind}")
        item, count = self.number("I"), self.number("Q")
        if item in _SCALARS and count > _MAX_ARRAY:
            self.skip(count * struct.calcsize("<" + _SCALARS[item]))
            return None
        if item == _STRING:
            for _ in range(count):
                self.skip(self.number("Q"))
            return None
        return tuple(self.value(item) for _ in range(count))

    def _bytes(self, count: int) -> bytes:
        data = self._file.read(count) if self.position + count <= self._size else b""
        if len(data) < count:
            raise EOFError
        return data


def read_gguf_header(path: Path) -> tuple[dict[str, TensorEntry], dict[str, str]]:
    """Read what a GGUF file says of itself.

    Args:
        path: The file; it begins with "GGUF".

    Returns:
        Name -> entry, Qwen's names translated to those of transformers, and the metadata that
        is text.

    Raises:
        CheckpointError: The file is cut off, damaged, or of a type that cannot be read.
        MissingExtraError: The package gguf is not installed.
    """
    gguf = _package(path)
    size = path.stat().st_size
    try:
        with path.open("rb") as file:
            tensors, metadata, end = _read(_Cursor(file, size), path, gguf)
    except EOFError:
        raise CheckpointError(
            f"{path} is cut off: its GGUF header goes on after the {size:,} bytes of the file; "
            "download it again."
        ) from None
    except _DamagedError as error:
        raise CheckpointError(
            f"{path} has a damaged GGUF header ({error}): download it again."
        ) from None
    if size < end:
        raise CheckpointError(
            f"{path} is cut off: expected {end:,} bytes by its header, found {size:,} bytes in "
            "the file; download it again."
        )
    if metadata.get(ARCHITECTURE) == QWEN_ARCHITECTURE:
        tensors = {rename_qwen(name): entry for name, entry in tensors.items()}
    elif projector(metadata) == QWEN_PROJECTOR:
        tensors = rename_vision(tensors)
    return tensors, metadata


def projector(metadata: Mapping[str, str]) -> str | None:
    """Return which model's vision tower a file says it holds, e.g. "qwen2.5vl_merger"; None for
    others."""
    if metadata.get(ARCHITECTURE) != VISION_ARCHITECTURE:
        return None
    # files that hear as well as see have one entry for each sense
    names = ("clip.projector_type", "clip.vision.projector_type")
    return next((metadata[name] for name in names if name in metadata), None)


def _read(
    cursor: _Cursor, path: Path, gguf: Any
) -> tuple[dict[str, TensorEntry], dict[str, str], int]:
    """Return entries, text metadata, and where the last tensor ends."""
    cursor.skip(len(b"GGUF"))
    version = cursor.number("I")
    if version not in (2, 3):
        raise CheckpointError(
            f"{path} is a GGUF file of version {version}: expected 2 or 3, little-endian; "
            "convert it again with a current llama.cpp."
        )
    num_tensors, num_values = cursor.number("Q"), cursor.number("Q")
    values: dict[str, Any] = {}
    for _ in range(num_values):
        key = cursor.text()
        values[key] = cursor.value(cursor.number("I"))
    listed: list[tuple[str, tuple[int, ...], int, int]] = []
    for _ in range(num_tensors):
        name, num_dims = cursor.text(), cursor.number("I")
        if num_dims > _MAX_ARRAY:
            raise _DamagedError(f"{name or 'a tensor'} has {num_dims} dimensions")
        dims = tuple(cursor.number("Q") for _ in range(num_dims))
        listed.append((name, dims[::-1], cursor.number("I"), cursor.number("Q")))
    alignment = values.get("general.alignment", _DEFAULT_ALIGNMENT)
    if not isinstance(alignment, int) or alignment < 1:
        raise _DamagedError(f"an alignment of {alignment!r}")
    start, end = -(-cursor.position // alignment) * alignment, 0
    tensors: dict[str, TensorEntry] = {}
    kinds = {each.value: each for each in gguf.GGMLQuantizationType}
    for name, shape, kind, offset in listed:
        if kind not in kinds:
            raise CheckpointError(
                f"{path} holds {name} in GGUF's type number {kind}, which the installed package "
                "gguf does not know: update it (pip install -U gguf), or use another file."
            )
        block, block_bytes = gguf.GGML_QUANT_SIZES[kinds[kind]]
        size = math.prod(shape)
        true_shape = values.get(_SHAPE_KEY + name) or shape
        if size % block or math.prod(true_shape) != size:
            raise _DamagedError(f"{name} has the impossible shape {true_shape}")
        end = max(end, start + offset + size // block * block_bytes)
        tensors[name] = TensorEntry(kinds[kind].name, tuple(true_shape), path, name, start + offset)
    return tensors, {k: v for k, v in values.items() if isinstance(v, str)}, end


def map_file(path: Path) -> np.memmap:
    """Return a file's bytes, read when they are looked at. One map of a file serves all its
    tensors."""
    # copy-on-write: torch wants memory that it could write to, and nothing writes
    return np.memmap(path, np.uint8, "c")


def read_gguf_tensor(entry: TensorEntry, mapped: np.ndarray, dtype: torch.dtype) -> Tensor:
    """Read one tensor.

    Args:
        entry: From `read_gguf_header`.
        mapped: Its file, from `map_file`.
        dtype: What a quantised tensor is unpacked to; others keep their own.

    Returns:
        The tensor, of the entry's shape, on the CPU; an unquantised one is the mapped file.

    Raises:
        CheckpointError: The package gguf cannot unpack this type.
        MissingExtraError: The package gguf is not installed.
    """
    gguf = _package(entry.file)
    kind = gguf.GGMLQuantizationType[entry.dtype]
    block, block_bytes = gguf.GGML_QUANT_SIZES[kind]
    data = _bytes_of(entry, mapped, entry.size // block * block_bytes)
    if not entry.is_packed:
        return torch.from_numpy(data).view(DTYPES[entry.dtype]).reshape(entry.shape)
    values = torch.empty(entry.size, dtype=dtype)
    step = _CHUNK // block
    inference = torch.is_inference_mode_enabled()  # a thread does not inherit it

    def unpack(first: int) -> None:
        # one long row: the package loops over rows in Python
        packed = np.array(data[first * block_bytes : (first + step) * block_bytes])[None]
        unpacked = gguf.quants.dequantize(packed, kind)[0]
        with torch.inference_mode(inference):
            values[first * block : (first + step) * block] = torch.from_numpy(unpacked)

    try:
        with ThreadPoolExecutor(torch.get_num_threads()) as pool:
            list(pool.map(unpack, range(0, entry.size // block, step)))
    except NotImplementedError as error:
        raise CheckpointError(
            f"{entry.file} holds {entry.stored_name} in the format {entry.dtype}, which the "
            "installed package gguf cannot unpack: use a file in one of Q2_K to Q8_0."
        ) from error
    return values.reshape(entry.shape)


def read_gguf_blocks(entry: TensorEntry, mapped: np.ndarray) -> Tensor:
    """Read a packed matrix as it is stored.

    Args:
        entry: From `read_gguf_header`, with a `packing`.
        mapped: Its file, from `map_file`.

    Returns:
        The blocks of all rows (R, bytes of a row), uint8, on the CPU: the mapped file.
    """
    assert entry.packing is not None, entry
    rows, columns = entry.shape
    row_bytes = PACKINGS[entry.packing].packed_columns(columns)
    data = _bytes_of(entry, mapped, rows * row_bytes)
    return torch.from_numpy(data).view(rows, row_bytes)


def _bytes_of(entry: TensorEntry, mapped: np.ndarray, count: int) -> np.ndarray:
    first = entry.offset or 0
    if first + count > len(mapped):
        raise EOFError(f"the file ends at {len(mapped):,} bytes")
    return mapped[first : first + count]


def _package(path: Path) -> Any:
    try:
        return import_extra("gguf", "gguf")
    except MissingExtraError as error:
        # pip knows an extra only where the core is installed, and ComfyUI takes it by path
        raise MissingExtraError(
            f"{path} is a GGUF file, and the package gguf, which reads those, cannot be imported "
            f'({error.__cause__}): install it with pip install gguf, or as "kandinsky-core[gguf]".'
        ) from error
