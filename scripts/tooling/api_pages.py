"""Pages of every public name of the core, made from its docstrings by pdoc."""

from __future__ import annotations

import subprocess
from pathlib import Path

from . import environment
from .environment import ROOT

FOLDER = ROOT / "build" / "api"
NO_MATTER = "ignore:Error parsing type annotation"
"""pdoc says so of names that are imported for the type checker alone; it shows them as written."""


def write_pages() -> int:
    """Set up and write the pages into `build/api`; returns 0 if that worked."""
    environment.ensure("test")
    failed = run_pdoc(environment.python(), FOLDER, "kandinsky_core")
    if not failed:
        print(FOLDER / "index.html", flush=True)
    return failed


def run_pdoc(python: Path | str, folder: Path, module: str) -> int:
    """Write the pages of a module and of those in it.

    Args:
        python: An interpreter that has pdoc and what the core needs.
        folder: Where to; made where it is not there.
        module: Dotted name.

    Returns:
        The exit code.
    """
    options = ["--docformat", "google", "--no-show-source", "--output-directory", str(folder)]
    command = [str(python), "-W", NO_MATTER, "-m", "pdoc", *options, module]
    return subprocess.call(command, cwd=ROOT)
