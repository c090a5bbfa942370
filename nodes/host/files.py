"""Names in a node's list <-> files in ComfyUI's model folders."""

from __future__ import annotations

import difflib
import os
import re
from pathlib import Path
from typing import Literal

import folder_paths

Folder = Literal["diffusion_models", "text_encoders", "vae"]

NANO = "nano (bundled)"
"""List entry of the weights that come with the pack."""


_SHARD_NAME = re.compile(r".+-\d{5}-of-\d{5}\.safetensors")


def choices(folder: Folder, *first: str) -> list[str]:
    """Entries of a loader's list: `first`, then every file ComfyUI knows in that folder.

    Shards of one model are one entry, the folder that holds them.
    """
    names = folder_paths.get_filename_list(folder)
    return [*first, *dict.fromkeys(_folder_of_shards(name) or name for name in names)]


def locate(folder: Folder, name: str, input_id: str) -> Path:
    """Path of a file chosen from `choices`.

    Raises:
        ValueError: No folder of that kind, extra_model_paths.yaml included, has the file.
    """
    path = folder_paths.get_full_path(folder, name)
    if path is not None:
        return Path(path)
    known = choices(folder)
    for root in folder_paths.get_folder_paths(folder):
        if name in known and (Path(root) / name).is_dir():
            return Path(root) / name
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.6)
    hint = f"did you mean {near[0]!r}? Otherwise " if near else ""
    raise ValueError(
        f"{input_id}: there is no file {name!r} in the {folder} folders "
        f"({', '.join(folder_paths.get_folder_paths(folder))}): {hint}put it there and press R."
    )


def _folder_of_shards(name: str) -> str | None:
    """Folder of a shard, as the list spells it; None for whole files and for loose shards."""
    folder, file = os.path.split(name)
    return folder if folder and _SHARD_NAME.fullmatch(file) else None
