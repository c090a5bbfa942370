"""`show` and `identify`: what a result was made with, and what a weight file is."""

from __future__ import annotations

import argparse
import json as json_format
from dataclasses import dataclass
from pathlib import Path

from .options import reader
from .output import say


@dataclass(frozen=True)
class Show:
    """A result to describe."""

    path: Path
    """A video or an image."""


@dataclass(frozen=True)
class Identify:
    """A weight file to describe."""

    path: Path
    """A file or folder."""
    json: bool
    """Whether for programs."""


def add_show(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Describe the command `show`."""
    show = commands.add_parser("show", help="say what a video or an image was made with")
    show.add_argument("path", type=Path, help="an .mp4 or .png of this program or of ComfyUI")
    show.set_defaults(read=reader(Show), run=run_show)


def add_identify(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Describe the command `identify`."""
    tell = commands.add_parser("identify", help="say what a weight file is and what it needs")
    tell.add_argument("path", type=Path, help="a .safetensors or .gguf file, or a folder")
    tell.add_argument("--json", action="store_true", help="print JSON")
    tell.set_defaults(read=reader(Identify), run=run_identify)


def run_show(asked: Show) -> None:
    """Print what a video or an image was made with."""
    from ..video import describe_texts

    say(describe_texts(asked.path))


def run_identify(asked: Identify) -> None:
    """Print what a checkpoint is, what was assumed, and the settings it needs."""
    from ..checkpoint import identify

    info = identify(asked.path)
    say(json_format.dumps(info.to_dict(), indent=2) if asked.json else info.describe())
