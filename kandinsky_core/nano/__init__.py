"""The nano family: small weights that come with the package."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from ..errors import CheckpointError
from .edit import merge_edit, merged_edit, pack, unpack, write_difference

__all__ = [
    "EDIT_DIFFERENCE",
    "NanoPart",
    "merge_edit",
    "nano_path",
    "pack",
    "unpack",
    "write_difference",
]

EDIT_DIFFERENCE = "edit_difference.safetensors"
NanoPart = Literal["transformer", "edit_transformer", "text_encoder", "vae"]


def nano_path(part: NanoPart) -> Path:
    """Return the file of a bundled part.

    Raises:
        CheckpointError: This installation lacks it.
        OutputError: "edit_transformer" had to be made, and the cache is not writable.
    """
    if part == "edit_transformer":
        return merged_edit(nano_path("transformer"), _bundled(EDIT_DIFFERENCE, "edit model"))
    return _bundled(f"{part}.safetensors", part.replace("_", " "))


def _bundled(name: str, what: str) -> Path:
    path = Path(__file__).with_name(name)
    if not path.is_file():
        raise CheckpointError(
            f"the bundled nano {what} is missing ({path}): reinstall the package, or train it with "
            "kandinsky_core.training."
        )
    return path
