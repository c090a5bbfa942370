"""The command line's `convert-workflow`."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .options import reader

DESCRIPTION = """\
Map the Kandinsky 5 nodes of a ComfyUI workflow, the official pack's or ComfyUI's own, onto this
pack's. Takes what ComfyUI saves and what it exports for the API, and writes the same format.
"""


@dataclass(frozen=True)
class ConvertWorkflow:
    """A workflow to convert."""

    source: Path
    """File to read."""
    target: Path
    """File to write."""
    nano: bool
    """Whether the bundled model stands in place of the files."""


def add_convert(commands: Any) -> None:
    """Add it to the subparsers of a command line."""
    convert = commands.add_parser(
        "convert-workflow",
        help="map a ComfyUI workflow onto this pack's nodes",
        description=DESCRIPTION,
    )
    convert.add_argument("source", type=Path, metavar="IN.json", help="workflow to read")
    convert.add_argument("target", type=Path, metavar="OUT.json", help="workflow to write")
    convert.add_argument(
        "--nano",
        action="store_true",
        help="put the bundled nano model in place of the files, to run it without a download",
    )
    convert.set_defaults(read=reader(ConvertWorkflow), run=run)


def run(asked: ConvertWorkflow) -> None:
    """Convert a file and print what happened to each node."""
    from ..workflows.convert import convert_file

    report = convert_file(asked.source, asked.target, nano=asked.nano)
    sys.stdout.write(report.describe() + f"\n{asked.target}\n")
