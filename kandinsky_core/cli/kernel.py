"""`build-kernel`: compile the CPU kernel of sparse attention."""

from __future__ import annotations

import argparse
from dataclasses import dataclass

from .options import reader
from .output import say


@dataclass(frozen=True)
class BuildKernel:
    """A kernel to compile."""

    verbose: bool
    """Whether to show what the compiler says."""


def add_build_kernel(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Describe the command."""
    kernel = commands.add_parser(
        "build-kernel", help="compile the CPU kernel of sparse attention, once (optional)"
    )
    kernel.add_argument("--verbose", action="store_true", help="show what the compiler says")
    kernel.set_defaults(read=reader(BuildKernel), run=run_build_kernel)


def run_build_kernel(asked: BuildKernel) -> None:
    """Compile the attention kernel, say where it is and what it is worth here."""
    from ..attention import build_kernel, kernel_speeds

    say(str(build_kernel(verbose=asked.verbose)))
    for dtype, speed in kernel_speeds().items():
        choice = "used" if speed >= 1 else "not used unless it is asked for"
        say(f"{dtype}: {speed:g} times the speed of plain PyTorch on this machine, {choice}")
