"""The door of the command line: words in, frozen values and what runs them out.

argparse and not tyro, which would make the parser from the dataclasses: tyro 1.0 knows no option
with a number or without one (`--magcache`), says errors in boxes of several lines, and `identify`
would start 0.4 s later.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from functools import partial

from .expand import add_expand_command
from .generate import add_generate
from .kernel import add_build_kernel
from .lora import add_lora_commands
from .magcache import add_calibrate
from .plan import add_plan
from .show import add_identify, add_show
from .workflows import add_convert


def parse(argv: Sequence[str] | None = None) -> Callable[[], None]:
    """Read a command line; returns what does it.

    Raises:
        ValueError: Options do not go together, or a number is out of its range.
    """
    args = build_parser().parse_args(argv)
    return partial(args.run, args.read(args))


def build_parser() -> argparse.ArgumentParser:
    """Describe the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m kandinsky_core",
        description="Kandinsky 5: videos and images from prompts.",
    )
    commands = parser.add_subparsers(dest="command", required=True)
    add_generate(commands)
    add_plan(commands)
    add_calibrate(commands)
    add_show(commands)
    add_expand_command(commands)
    add_identify(commands)
    add_lora_commands(commands)
    add_convert(commands)
    add_build_kernel(commands)
    return parser
