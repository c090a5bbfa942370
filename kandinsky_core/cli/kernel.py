"""`build-kernel`: compile the CPU kernel of sparse attention."""

from __future__ import annotations

import argparse

from .output import say


def run_build_kernel(args: argparse.Namespace) -> None:
    """Compile the attention kernel, say where it is and what it is worth here."""
    from ..attention import build_kernel, kernel_speeds

    say(str(build_kernel(verbose=args.verbose)))
    for dtype, speed in kernel_speeds().items():
        choice = "used" if speed >= 1 else "not used unless it is asked for"
        say(f"{dtype}: {speed:g} times the speed of plain PyTorch on this machine, {choice}")
