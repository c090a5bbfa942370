"""Write checkpoints so that a stop or a full disk never leaves half of one."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from ..errors import OutputError
from ..files import atomic_write


def save_checkpoint(
    path: str | Path, state_dict: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None
) -> None:
    """Write a .safetensors file atomically.

    The file appears under its name only when it is complete, so a network that is loaded from
    an earlier file of that name (memory-mapped) keeps its weights.

    Args:
        path: Where to write.
        state_dict: Name -> tensor, on any device; they may share memory.
        metadata: Strings kept in the header; see `describe_metadata`.

    Raises:
        ValueError: A weight is packed.
        OutputError: The folder does not exist, is not writable, or has no room.
    """
    path = Path(path)
    # clones only what safetensors would refuse: parts of storages, and tensors seen before
    seen: set[int] = set()
    tensors: dict[str, Tensor] = {}
    for name, tensor in state_dict.items():
        if tensor.dtype == torch.uint8 and tensor.ndim == 2:
            raise ValueError(
                f"{name} is packed as in the GGUF file it comes from, and {path} cannot hold that: "
                "load that file in a dtype, such as bf16, to save it."
            )
        tensor = tensor.detach().contiguous()
        whole = tensor.untyped_storage().nbytes() == tensor.nbytes
        if tensor.untyped_storage().data_ptr() in seen or not whole:
            tensor = tensor.clone()
        seen.add(tensor.untyped_storage().data_ptr())
        tensors[name] = tensor
    with atomic_write(path) as part:
        try:
            save_file(tensors, part, metadata=dict(metadata or {}))
        except SafetensorError as error:
            raise OutputError(
                f"{path} could not be written ({error}): nothing was changed; "
                "free some space or choose another folder."
            ) from error
