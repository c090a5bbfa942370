"""`show` and `identify`: what a result was made with, and what a weight file is."""

from __future__ import annotations

import argparse
import json

from .output import say


def run_show(args: argparse.Namespace) -> None:
    """Print what a video or an image was made with."""
    from ..video import describe_texts

    say(describe_texts(args.path))


def run_identify(args: argparse.Namespace) -> None:
    """Print what a checkpoint is, what was assumed, and the settings it needs."""
    from ..checkpoint import identify

    info = identify(args.path)
    say(json.dumps(info.to_dict(), indent=2) if args.json else info.describe())
