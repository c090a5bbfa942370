"""Texts in ComfyUI's input folder."""

from __future__ import annotations

from pathlib import Path

import folder_paths

from ...kandinsky_core.prompts import PromptEntry, Split, parse_prompts

NO_FILE = "(none)"
"""List entry for no file."""

_MOST_BYTES = 2**20


def input_texts() -> list[str]:
    """Return the .txt files there."""
    folder = Path(folder_paths.get_input_directory())
    return sorted(path.name for path in folder.glob("*.txt") if path.is_file())


def fingerprint_input(name: str) -> str:
    """Return what changes with a file's content."""
    path = Path(folder_paths.get_input_directory()) / name
    return f"{name} {path.stat().st_mtime_ns if name in input_texts() else None}"


def read_input_text(name: str, input_id: str) -> str:
    """Read a text from the input folder.

    Args:
        name: One of `input_texts`; workflows from elsewhere reach no other file.
        input_id: Which input it comes from, for messages.

    Raises:
        ValueError: There is no such file, or it is too large or no text.
    """
    known = input_texts()
    if name not in known:
        raise ValueError(
            f"{input_id}: there is no file {name[:120]!r} in ComfyUI's input folder (its .txt "
            f"files: {', '.join(known[:10]) or 'none'}); put it there and press R."
        )
    path = Path(folder_paths.get_input_directory()) / name
    if path.stat().st_size > _MOST_BYTES:
        raise ValueError(
            f"{input_id}: {name} has {path.stat().st_size:,} bytes, at most {_MOST_BYTES:,} are "
            "read; divide it."
        )
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{input_id}: {name} is no UTF-8 text; save it as UTF-8, or paste its lines into text."
        ) from error


def read_prompts(text: str, file: str, split: Split) -> list[PromptEntry]:
    """Return the prompts of a text, then those of a file in the input folder.

    Args:
        text: A list of prompts; may be empty beside a file.
        file: One of `input_texts`, or `NO_FILE`.
        split: What separates prompts.

    Returns:
        At least one.

    Raises:
        ValueError: See `parse_prompts` and `read_input_text`.
    """
    entries: list[PromptEntry] = []
    if text.strip() or file == NO_FILE:
        entries += parse_prompts(text, source="text", split=split)
    if file != NO_FILE:
        entries += parse_prompts(read_input_text(file, "file"), source=file, split=split)
    return entries
