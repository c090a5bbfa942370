"""nano's edit model, bundled as its difference from the transformer for the other tasks.

It was trained from those weights, so the difference is small, and four bits a weight are enough
for it: a quarter of the file. Nothing else has to know of that, for what is handed out is the path
of an ordinary transformer, made once and kept in the user's cache.

Letters: W weights of a tensor, G groups of it.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor
from torch.nn import functional

from ..checkpoint import describe_metadata, open_checkpoint, save_checkpoint
from ..errors import CheckpointError
from ..files import cache_folder

GROUP = 32
"""Weights that share a scale."""
LEVELS = 7
"""Steps of a scale on either side of zero."""


def pack(difference: Tensor) -> tuple[Tensor, Tensor]:
    """Round a tensor to four bits a weight.

    Args:
        difference: Any shape, floating point.

    Returns:
        Codes (ceil(W / 32) * 16,) uint8, two to a byte, and the groups' scales (G,) fp16.
    """
    flat = difference.float().flatten()
    groups = functional.pad(flat, (0, -flat.numel() % GROUP)).view(-1, GROUP)
    scales = (groups.abs().amax(1, keepdim=True) / LEVELS).half()
    codes = (groups / scales.float().clamp(min=1e-12)).round().clamp(-LEVELS, LEVELS)
    low, high = (codes + 8).to(torch.uint8).view(-1, 2).unbind(1)
    return low | high << 4, scales.flatten()


def unpack(codes: Tensor, scales: Tensor, shape: torch.Size) -> Tensor:
    """Undo `pack`; fp32 of a shape."""
    both = torch.stack([codes & 15, codes >> 4], dim=1).float() - 8
    flat = (both.view(-1, GROUP) * scales.float()[:, None]).flatten()
    return flat[: shape.numel()].view(shape)


def write_difference(base: Path, edited: Path, path: Path) -> None:
    """Write what has to be added to one transformer to get another, atomically.

    Args:
        base: The bundled transformer.
        edited: One that was trained from it.
        path: Where to write.

    Raises:
        OutputError: The folder is not writable, or has no room.
    """
    tensors: dict[str, Tensor] = {}
    with open_checkpoint(base) as before, open_checkpoint(edited) as after:
        for name in after:
            if after[name].ndim < 2:
                tensors[name] = after[name].half()
            else:
                difference = after[name].float() - before[name].float()
                tensors[f"{name}.codes"], tensors[f"{name}.scales"] = pack(difference)
    save_checkpoint(path, tensors, {"base": _digest(base)})


def merge_edit(base: Path, difference: Path, path: Path) -> None:
    """Write the transformer that edits, fp16, atomically.

    Args:
        base: The bundled transformer.
        difference: From `write_difference`.
        path: Where to write.

    Raises:
        CheckpointError: The two do not belong together.
        OutputError: The folder is not writable, or has no room.
    """
    with safe_open(difference, framework="pt") as file:
        wanted = (file.metadata() or {}).get("base")
        packed = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    if wanted != _digest(base):
        raise CheckpointError(
            f"{difference} belongs to another transformer than {base} (checksum {wanted}, not "
            f"{_digest(base)}): reinstall the package, or train the edit model again."
        )
    weights: dict[str, Tensor] = {}
    with open_checkpoint(base) as before:
        config = before.info.config
        assert config is not None
        for name in before:
            weight = before[name]
            if weight.ndim < 2:
                weights[name] = packed[name]
            else:
                parts = packed[f"{name}.codes"], packed[f"{name}.scales"]
                weights[name] = (weight.float() + unpack(*parts, weight.shape)).half()
    metadata = describe_metadata(config, variant="nano", task="i2i", stage="pretrain")
    save_checkpoint(path, weights, metadata)


def merged_edit(base: Path, difference: Path) -> Path:
    """Return the transformer that edits; made if it is not in the user's cache yet.

    Raises:
        OutputError: The cache is not writable, or has no room.
    """
    path = cache_folder() / f"nano_edit-{_digest(base, difference)}.safetensors"
    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        merge_edit(base, difference, path)
    return path


def _digest(*paths: Path) -> str:
    digest = hashlib.sha256()
    for path in paths:
        digest.update(path.read_bytes())
    return digest.hexdigest()[:12]
