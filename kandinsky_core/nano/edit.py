"""nano's edit model: the bundled transformer and adapters of low rank, added up.

As adapters it is a quarter of its size. Nothing else has to know of that: what is handed out is
the path of an ordinary transformer, which is made once and kept in the user's cache.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

import torch

from ..checkpoint import (
    describe_metadata,
    layer_shapes,
    load_transformer,
    match_lora,
    merge_loras,
    read_lora,
    save_checkpoint,
)
from ..files import cache_folder

EDIT_LORA = "edit_lora.safetensors"


def merge_edit(base: Path, lora: Path, path: Path) -> None:
    """Write a transformer that edits, atomically.

    Args:
        base: The transformer that the adapters were trained beside.
        lora: The adapters.
        path: Where to write; fp16.

    Raises:
        CheckpointError: The two do not belong together.
        OutputError: The folder is not writable, or has no room.
    """
    network, _ = load_transformer(base, dtype=torch.float32)
    merge_loras(network, [(match_lora(read_lora(lora), layer_shapes(network)), 1.0)])
    metadata = describe_metadata(network.config, variant="nano", task="i2i", stage="pretrain")
    save_checkpoint(path, network.half().state_dict(), metadata)


def merged_edit(base: Path, lora: Path) -> Path:
    """The transformer that edits; made if it is not in the user's cache yet.

    Raises:
        OutputError: The cache is not writable, or has no room.
    """
    digest = hashlib.sha256(base.read_bytes() + lora.read_bytes()).hexdigest()[:12]
    path = cache_folder() / f"nano_edit-{digest}.safetensors"
    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        merge_edit(base, lora, path)
    return path
