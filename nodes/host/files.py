"""Names in a node's list <-> files in ComfyUI's model folders."""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import Literal

import folder_paths

Folder = Literal["diffusion_models", "text_encoders", "vae"]

NANO = "nano (bundled)"
"""List entry of the weights that come with the pack."""


def choices(folder: Folder, *first: str) -> list[str]:
    """Entries of a loader's list: `first`, then every file ComfyUI knows in that folder."""
    return [*first, *folder_paths.get_filename_list(folder)]


def locate(folder: Folder, name: str, input_id: str) -> Path:
    """Path of a file chosen from `choices`.

    Raises:
        ValueError: No folder of that kind, extra_model_paths.yaml included, has the file.
    """
    path = folder_paths.get_full_path(folder, name)
    if path is not None:
        return Path(path)
    known = folder_paths.get_filename_list(folder)
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.6)
    hint = f"did you mean {near[0]!r}? Otherwise " if near else ""
    raise ValueError(
        f"{input_id}: there is no file {name!r} in the {folder} folders "
        f"({', '.join(folder_paths.get_folder_paths(folder))}): {hint}put it there and press R."
    )
