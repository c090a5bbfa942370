"""Tensors of one or several files by name, read and unpacked when they are asked for."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from ..errors import CheckpointError
from .entry import DTYPES, TensorEntry
from .gguf_file import map_file, read_gguf_blocks, read_gguf_tensor
from .scaled import SCALE, main_dtype, split_scales

_Files = TypeVar("_Files", bound="WeightFiles")


class WeightFiles(Mapping[str, Tensor]):
    """The weights of a file or of several, whatever their format.

    On the CPU a tensor that need not be unpacked is a view of the memory-mapped file.
    """

    def __init__(
        self,
        path: Path,
        tensors: Mapping[str, TensorEntry],
        *,
        device: torch.device | str = "cpu",
        keep_scales: bool = False,
    ) -> None:
        """Take entries of headers; no file is opened yet.

        Args:
            path: What the user gave, for messages.
            tensors: Name to read by -> entry.
            device: Where tensors are put.
            keep_scales: Leave scaled fp8 weights as they are stored, and give the factor of the
                layer X as X.scale_weight, a scalar in fp32. Where factors are no scalars they are
                multiplied in as ever.

        Raises:
            CheckpointError: It is a scaled fp8 file without its scales, or of an unknown kind.
        """
        weights, scales = split_scales(path, tensors)
        self.path = path
        self.entries: dict[str, TensorEntry] = weights
        self.scaled_dtype: torch.dtype | None = None
        """What scaled weights come in where scales are kept; None where there are none."""
        self.main_dtype = main_dtype(weights.values(), is_scaled=bool(scales))
        """What most of the weights are when they are read."""
        self._scales: dict[str, TensorEntry] = scales
        if keep_scales and scales and all(scale.size == 1 for scale in scales.values()):
            self.scaled_dtype = main_dtype(weights[name] for name in scales)
            self._scales = {}
            self.entries |= {
                name.removesuffix(".weight") + SCALE: scale._replace(shape=())
                for name, scale in scales.items()
            }
        is_gguf = any(entry.offset is not None for entry in weights.values())
        self.is_unpacked = is_gguf or bool(self._scales)
        """Whether weights are computed from what is stored. Such files keep their small tensors in
        other dtypes, so read them all in one."""
        self._device = torch.device(device)
        self._open: dict[Path, Any] = {}
        self._maps: dict[Path, np.ndarray] = {}

    def read(self, name: str, dtype: torch.dtype | None = None) -> Tensor:
        """Read one tensor.

        Args:
            name: One of the mapping.
            dtype: Of floating tensors; None keeps the file's, or bf16 where the tensor is stored
                with scales.

        Returns:
            The tensor, unpacked, on the device.

        Raises:
            CheckpointError: It is damaged, or stored in a format that cannot be read.
        """
        entry = self.entries[name]
        unpacked = dtype or torch.bfloat16
        if entry.parts:
            # its parts may be stored in several types: read them as one
            whole = dtype or (unpacked if entry.is_packed else DTYPES[entry.dtype])
            parts = [self._gguf(part, whole).to(whole) for part in entry.parts]
            return torch.cat(parts, entry.axis)
        if entry.is_packed:
            return self._gguf(entry, unpacked)
        tensor = self._stored(entry)
        if name in self._scales:
            scale = self._stored(self._scales[name]).float()
            if scale.numel() > 1:
                scale = scale.reshape(-1, *[1] * (tensor.ndim - 1))
            return tensor.float().mul_(scale).to(unpacked)
        if self.scaled_dtype is not None and name.endswith(SCALE):
            return tensor.float()
        return tensor.to(dtype) if tensor.is_floating_point() else tensor

    def read_packed(self, name: str) -> Tensor:
        """Read a matrix whose entry has a `packing` as it is stored.

        Args:
            name: One of the mapping.

        Returns:
            The blocks of all rows (R, bytes of a row), uint8, on the device.

        Raises:
            CheckpointError: It cannot be read.
        """
        entry = self.entries[name]
        try:
            parts = [
                read_gguf_blocks(part, self._mapped(part.file)) for part in entry.parts or (entry,)
            ]
        except (OSError, ValueError, EOFError) as error:
            raise _unreadable(entry, error) from error
        return (parts[0] if len(parts) == 1 else torch.cat(parts)).to(self._device)

    def describe(self, name: str, dtype: torch.dtype | None = None) -> Tensor:
        """Return what `read` would return, on the meta device: its shape and dtype without its
        values."""
        entry = self.entries[name]
        result = DTYPES.get(entry.dtype, torch.bfloat16)
        if name in self._scales:
            result = torch.bfloat16
        elif self.scaled_dtype is not None and name.endswith(SCALE):
            result, dtype = torch.float32, None
        if result.is_floating_point:
            result = dtype or result
        return torch.empty(entry.shape, dtype=result, device="meta")

    def _stored(self, entry: TensorEntry) -> Tensor:
        """Return a tensor as it is in its file."""
        if entry.dtype not in DTYPES:
            raise CheckpointError(
                f"{entry.file} holds {entry.stored_name} in the format {entry.dtype}, which is "
                "not supported: use a file in bf16, fp16, fp32, fp8 or GGUF."
            )
        if entry.offset is not None:
            return self._gguf(entry, DTYPES[entry.dtype])
        try:
            if entry.file not in self._open:
                self._open[entry.file] = safe_open(entry.file, "pt", device=str(self._device))
            tensor = self._open[entry.file].get_tensor(entry.stored_name)
        except (SafetensorError, OSError) as error:
            raise _unreadable(entry, error) from error
        return tensor.reshape(entry.shape)

    def _gguf(self, entry: TensorEntry, dtype: torch.dtype) -> Tensor:
        try:
            return read_gguf_tensor(entry, self._mapped(entry.file), dtype).to(self._device)
        except (OSError, ValueError, EOFError) as error:
            if isinstance(error, CheckpointError):
                raise
            raise _unreadable(entry, error) from error

    def _mapped(self, file: Path) -> np.ndarray:
        if file not in self._maps:
            self._maps[file] = map_file(file)
        return self._maps[file]

    def __getitem__(self, name: str) -> Tensor:
        return self.read(name)

    def __iter__(self) -> Iterator[str]:
        return iter(self.entries)

    def __len__(self) -> int:
        return len(self.entries)

    def __enter__(self: _Files) -> _Files:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Let go of the files; tensors already read stay valid."""
        self._open.clear()
        self._maps.clear()


def _unreadable(entry: TensorEntry, error: Exception) -> CheckpointError:
    return CheckpointError(
        f"{entry.file} cannot be read at {entry.stored_name} ({error}): download it again."
    )
