"""Names in a node's list <-> files in ComfyUI's model folders."""

from __future__ import annotations

import difflib
import logging
import os
import re
import uuid
from pathlib import Path
from typing import Literal

import folder_paths

from ...kandinsky_core.checkpoint import facts_in_name, identify
from ...kandinsky_core.family import Part, Release

Folder = Literal["diffusion_models", "text_encoders", "vae", "loras"]

NANO = "nano (bundled)"
"""List entry of the weights that come with the pack."""
NANO_EDIT = "nano edit (bundled)"
"""List entry of those that edit images."""


_PLAIN_NAME = re.compile(r"\w[\w .-]{0,99}(?<![ .])")
_SHARD_NAME = re.compile(r".+-\d{5}-of-\d{5}\.(?:safetensors|gguf)")


def choices(folder: Folder, *first: str) -> list[str]:
    """Return the entries of a loader's list: `first`, then every file ComfyUI knows in that folder,
    and GGUF.

    Shards of one model are one entry, the folder that holds them.
    """
    names = folder_paths.get_filename_list(folder)
    if folder != "vae":
        names = [*names, *_gguf_names(folder)]
    return [*first, *dict.fromkeys(_folder_of_shards(name) or name for name in names)]


def locate(folder: Folder, name: str, input_id: str) -> Path:
    """Return the path of a file chosen from `choices`.

    Raises:
        ValueError: No folder of that kind, extra_model_paths.yaml included, has the file.
    """
    path = find_path(folder, name)
    if path is not None:
        return path
    known = choices(folder)
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.6)
    hint = f"did you mean {near[0]!r}? Otherwise " if near else ""
    raise ValueError(
        f"{input_id}: there is no file {name!r} in the {folder} folders "
        f"({', '.join(folder_paths.get_folder_paths(folder))}): {hint}put it there and press R."
    )


def find_path(folder: Folder, name: str) -> Path | None:
    """Return the path of a file chosen from `choices`, or None."""
    path = folder_paths.get_full_path(folder, name)
    if path is not None:
        return Path(path)
    roots = folder_paths.get_folder_paths(folder) if name in choices(folder) else []
    return next((Path(root) / name for root in roots if (Path(root) / name).is_dir()), None)


def find_model(file_name: str, release: Release) -> str:
    """Return a checkpoint in the list of Load Model, whoever converted it and whatever the format.

    Args:
        file_name: What it was released as.
        release: What it is.

    Returns:
        The entry of that name, else the first that names the task and is identified as that
        checkpoint; where there is none, `file_name`.
    """
    names = choices("diffusion_models")
    stem = file_name.removesuffix(".safetensors")
    for name in names:
        if Path(name).name.removesuffix(".safetensors") == stem:
            return name
    for name in names:
        if facts_in_name(name).get("task") == release.task and _is_release(name, release):
            return name
    return file_name


def find_part(folder: Folder, part: Part) -> str:
    """Return a file in a loader's list by the names it goes by; its usual name where there is
    none."""
    names = choices(folder)
    usual = [name for name in names if Path(name).name == part.file_name]
    others = (name for name in names if re.match(part.pattern, Path(name).name.lower()))
    return next(iter(usual), None) or next(others, part.file_name)


def _is_release(name: str, release: Release) -> bool:
    try:
        return identify(locate("diffusion_models", name, "model_name")).release == release
    except Exception as error:  # people put any file there: one must not cost them the others
        logging.warning("Kandinsky 5: %s is left out of the presets (%s).", name, error)
        return False


def temporary_file(name: str) -> Path:
    """Return a new path like `name` in the folder that ComfyUI empties when it starts."""
    folder = Path(folder_paths.get_temp_directory())
    folder.mkdir(parents=True, exist_ok=True)
    path = Path(name)
    return folder / f"kandinsky5_{path.stem}_{uuid.uuid4().hex}{path.suffix}"


def ratio_names() -> list[str]:
    """Return the files of MagCache ratios, in models/kandinsky5."""
    return sorted(path.name for path in _ratios_folder().glob("*.json"))


def ratios_path(name: str, input_id: str, *, create: bool = False) -> Path:
    """Return the path of a file of MagCache ratios.

    Args:
        name: File name; its .json may be left out.
        input_id: Which input it comes from, for messages.
        create: Make the folder, to write there.

    Raises:
        ValueError: It is not the plain name of a file.
    """
    if not _PLAIN_NAME.fullmatch(name):
        raise ValueError(
            f"{input_id}: expected a plain file name of letters, digits, spaces and ._- "
            f"(at most 100), found {name[:120]!r}."
        )
    folder = _ratios_folder()
    if create:
        folder.mkdir(parents=True, exist_ok=True)
    return folder / (name if name.endswith(".json") else f"{name}.json")


def _ratios_folder() -> Path:
    return Path(folder_paths.models_dir) / "kandinsky5"


def _gguf_names(folder: Folder) -> list[str]:
    """Return the files that ComfyUI leaves out of its lists because its own loaders cannot read
    them."""
    names: set[str] = set()
    for root in folder_paths.get_folder_paths(folder):
        files, _folders = folder_paths.recursive_search(root, excluded_dir_names=[".git"])
        names.update(folder_paths.filter_files_extensions(files, {".gguf"}))
    return sorted(names)


def _folder_of_shards(name: str) -> str | None:
    """Return the folder of a shard, as the list spells it; None for whole files and for loose
    shards."""
    folder, file = os.path.split(name)
    return folder if folder and _SHARD_NAME.fullmatch(file) else None
