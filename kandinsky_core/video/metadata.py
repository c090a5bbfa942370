"""Texts that a video or an image carries: what it was made with."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ..errors import import_extra
from .image import read_image_metadata

_OF_THE_FORMAT = ("major_brand", "minor_version", "compatible_brands", "encoder")
_WORKFLOWS = ("workflow", "prompt")
"""Keys under which ComfyUI keeps its graph, as the canvas and as the server know it."""
_PNG_SIGNATURE = b"\x89PNG"


def read_metadata(path: str | Path) -> dict[str, str]:
    """Read the texts of a PNG, or of a video of any format that FFmpeg knows.

    Args:
        path: The file.

    Returns:
        Keyword -> text, without those that only describe the format.

    Raises:
        ValueError: The file is missing, or is neither.
        MissingExtraError: It is no PNG and PyAV is not installed.
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"{path} does not exist: give a video or a PNG.")
    with path.open("rb") as file:
        is_png = file.read(len(_PNG_SIGNATURE)) == _PNG_SIGNATURE
    if is_png:
        try:
            return read_image_metadata(path)
        except (ValueError, IndexError) as error:
            raise ValueError(f"{path} has a text that cannot be read: it is damaged.") from error
    av = import_extra("av", "video")
    try:
        with av.open(str(path)) as container:
            texts = dict(container.metadata)
    except av.FFmpegError as error:
        raise ValueError(f"{path} is neither a video nor a PNG ({error}).") from error
    return {key: text for key, text in texts.items() if key not in _OF_THE_FORMAT}


def describe_texts(path: str | Path) -> str:
    """Return lines for a reader: what a video or an image was made with.

    Args:
        path: A file of the command line or of ComfyUI.

    Returns:
        A line for each text; of ComfyUI's graphs their size, as they are for its canvas.

    Raises:
        ValueError: See `read_metadata`, or the file carries no texts.
    """
    texts = read_metadata(path)
    if not texts:
        raise ValueError(f"{path} carries no prompt and no settings: it was written without any.")
    return "\n".join(f"{key}: {_in_words(key, text)}" for key, text in texts.items())


def _in_words(key: str, text: str) -> str:
    if key not in _WORKFLOWS:
        return text
    try:
        graph: Any = json.loads(text)
    except ValueError:
        return text
    if not isinstance(graph, dict):
        return text
    nodes = graph.get("nodes", graph)
    return f"{len(nodes)} nodes of ComfyUI; drop the file on its canvas to open them"
