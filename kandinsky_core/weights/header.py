"""What a weight file says about itself, read without touching a tensor.

A .safetensors file is eight bytes of length, that many bytes of JSON (name -> dtype, shape,
offsets), then the tensors. The JSON is enough to know what a model is and whether the file is
whole; it is a few hundred kilobytes where the tensors are tens of gigabytes. A GGUF file begins
with as much, in a format of its own.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from ..errors import CheckpointError
from .entry import TensorEntry
from .gguf_file import read_gguf_header

Component = Literal["transformer", "vae", "text_encoder"]
"""Part of a model, and the sub-folder of a Diffusers folder that holds it."""

_MAX_HEADER_BYTES = 100_000_000  # the format's own limit
_SHARD_NAME = re.compile(r"(.*)-(\d{5})-of-(\d{5})\.(?:safetensors|gguf)")
_PICKLE_SUFFIXES = (".ckpt", ".pt", ".pth", ".bin", ".pkl")


@dataclass(frozen=True)
class Header:
    """All tensors of a model that is one file or several shards."""

    path: Path
    """What the user gave."""
    tensors: Mapping[str, TensorEntry]
    """Full name -> entry."""
    metadata: Mapping[str, str]
    """The files' own metadata."""


def read_header(path: str | Path, component: Component = "transformer") -> Header:
    """Read the header of a checkpoint.

    Args:
        path: A .safetensors or .gguf file, an index of shards (.safetensors.index.json), a
            folder of weights, or a Diffusers folder with sub-folders.
        component: Which sub-folder of a Diffusers folder.

    Returns:
        The entries of all its files together.

    Raises:
        CheckpointError: There is no such file, or it is damaged or of another format.
        MissingExtraError: It is a GGUF file, and the package gguf is not installed.
    """
    path = Path(path)
    tensors: dict[str, TensorEntry] = {}
    metadata: dict[str, str] = {}
    for file in weight_files(path, component):
        file_tensors, file_metadata = _read_file_header(file)
        tensors |= file_tensors
        metadata |= file_metadata
    if not tensors:
        raise CheckpointError(f"{path} holds no tensors: download or save it again.")
    return Header(path, tensors, metadata)


def weight_files(path: Path, component: Component = "transformer") -> list[Path]:
    """Return the files that `path` stands for.

    Raises:
        CheckpointError: `path` or a shard is missing, or it is not clear which file is meant.
    """
    if not path.exists():
        raise CheckpointError(f"{path} does not exist: check the path, or download the file.")
    if path.is_dir():
        return _folder_files(path / component if (path / component).is_dir() else path)
    if path.name.endswith(".index.json"):
        return _indexed_files(path)
    if shard := _SHARD_NAME.fullmatch(path.name):
        raise CheckpointError(
            f"{path} is one of {int(shard[3])} shards: give the folder that holds them all."
        )
    return [path]


def is_mmproj(file: Path) -> bool:
    """Return whether a file is named as llama.cpp's users name a vision tower kept apart."""
    return file.suffix == ".gguf" and "mmproj" in file.name.lower()


def _folder_files(folder: Path) -> list[Path]:
    # "model.fp16.safetensors" may lie beside "model.safetensors": the shorter name is the plain one
    indices = sorted(folder.glob("*.safetensors.index.json"), key=lambda file: len(file.name))
    if indices:
        return _indexed_files(indices[0])
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        packed = sorted(folder.glob("*.gguf"))
        # a vision tower lies beside its language model and is found through it
        files = [file for file in packed if not is_mmproj(file)] or packed
    shards = [match for file in files if (match := _SHARD_NAME.fullmatch(file.name))]
    if shards and len(shards) == len(files) == int(shards[0][3]):
        return files
    if len(files) == 1 and not shards:
        return files
    if shards:
        raise CheckpointError(
            f"{folder} holds {len(shards)} of {int(shards[0][3])} shards and no index: "
            "download the folder again, completely."
        )
    if not files:
        raise CheckpointError(
            f"{folder} holds no .safetensors or .gguf file: give the file itself, or a Diffusers "
            "folder."
        )
    names = ", ".join(file.name for file in files[:3])
    raise CheckpointError(
        f"{folder} holds {len(files)} {files[0].suffix} files ({names}...): give the one to use."
    )


def _indexed_files(index: Path) -> list[Path]:
    try:
        names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
    except (ValueError, KeyError, AttributeError, TypeError) as error:
        raise CheckpointError(
            f"{index} is not an index of shards (no readable weight_map): download it again."
        ) from error
    # only names beside the index: it is data from elsewhere and must not reach other folders
    files = [index.parent / Path(name).name for name in names]
    missing = [file.name for file in files if not file.is_file()]
    if missing:
        raise CheckpointError(
            f"{index.parent} lacks {len(missing)} of {len(files)} shards, first {missing[0]}: "
            "download the folder again, completely."
        )
    return files


def _read_file_header(path: Path) -> tuple[dict[str, TensorEntry], dict[str, str]]:
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            start = file.read(8)
            if start.startswith(b"GGUF"):
                return read_gguf_header(path)
            length = int.from_bytes(start, "little")
            text = file.read(length) if 2 <= length <= _MAX_HEADER_BYTES else b""
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read ({error.strerror}).") from error
    if not text.startswith(b"{"):
        raise _other_format(path, start, size)
    if len(text) < length:
        raise _truncated(path, size, f"a header of {length:,} bytes")
    try:
        header = json.loads(text)
        metadata = header.pop("__metadata__", {})
        tensors = {
            name: TensorEntry(str(entry["dtype"]), tuple(map(int, entry["shape"])), path, name)
            for name, entry in header.items()
        }
        end = max((entry["data_offsets"][1] for entry in header.values()), default=0)
    except (ValueError, KeyError, TypeError, IndexError, AttributeError) as error:
        raise CheckpointError(
            f"{path} has a damaged safetensors header ({error}): download it again."
        ) from error
    if size < 8 + length + end:
        raise _truncated(path, size, f"{8 + length + end:,} bytes by its header")
    return tensors, metadata


def _truncated(path: Path, size: int, expected: str) -> CheckpointError:
    return CheckpointError(
        f"{path} is cut off: expected {expected}, found {size:,} bytes in the file; "
        "download it again."
    )


def _other_format(path: Path, start: bytes, size: int) -> CheckpointError:
    """Say what a file is that does not begin like a .safetensors file."""
    if size == 0:
        return CheckpointError(f"{path} is empty (0 bytes): download it again.")
    pickled = start.startswith((b"PK\x03\x04", b"\x80\x02", b"\x80\x03", b"\x80\x04"))
    if pickled or path.suffix.lower() in _PICKLE_SUFFIXES:
        return CheckpointError(
            f"{path} is a pickle, which may run any code when it is loaded: "
            "use the .safetensors file, or convert it where you trust it."
        )
    if start == b"version ":
        return CheckpointError(
            f"{path} is a Git LFS pointer, not the weights: fetch them with git lfs pull."
        )
    return CheckpointError(
        f"{path} is not a safetensors file whatever its name: expected a JSON header, "
        f"found it to begin with {start!r}; download the file itself, not a page about it."
    )
