"""The command `plan`: what a job will need, before anything is loaded."""

from __future__ import annotations

import argparse
import re
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ..family.settings import TASKS
from .options import read, read_gib

if TYPE_CHECKING:
    from ..family.shapes import Size
    from ..planning.jobs import Request

DTYPES = {
    "fp32": "float32",
    "bf16": "bfloat16",
    "fp16": "float16",
    "fp8": "float8_e4m3fn",
}
"""Choice -> torch's name."""


@dataclass(frozen=True)
class Plan:
    """A job to plan."""

    request: Request
    """The job."""
    memory: int | None
    """Bytes that are free on the device; None leaves the verdict out."""
    main_memory: int | None
    """Bytes that are free of main memory."""


@dataclass(frozen=True)
class FamilyPage:
    """The page about the whole family."""

    report: Path | None
    """File to write; None prints it."""


def add_plan(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Describe the command."""
    command = commands.add_parser(
        "plan",
        help="say what a job will need in memory",
        description="Predict the memory of each stage of a job, from a count of weights and "
        "tensors; nothing is loaded. What is left out is as the checkpoint was made for.",
    )
    command.add_argument(
        "--model", default="video_lite", help="a variant of the family, or a file or folder"
    )
    command.add_argument("--task", choices=TASKS, help="what from what")
    command.add_argument("--size", type=_size, metavar="HxW", help="pixels, e.g. 512x768")
    command.add_argument(
        "--size-class",
        choices=("auto", "small", "large"),
        default="auto",
        help="sizes that a checkpoint was trained at: small is 512 (nano 128), large 1024 on Pro "
        "(nano 256) (default: by --size; small without it)",
    )
    command.add_argument(
        "--frames",
        dest="num_frames",
        type=int,
        metavar="FRAMES",
        help="clip length, 4k + 1; 1 for images",
    )
    command.add_argument(
        "--steps",
        dest="num_steps",
        type=int,
        metavar="STEPS",
        help="sampling steps; they cost time alone",
    )
    command.add_argument(
        "--cfg",
        dest="guidance_scale",
        type=float,
        metavar="CFG",
        help="guidance scale; at 1 no negative prompt is run",
    )
    command.add_argument(
        "--guidance",
        action=argparse.BooleanOptionalAction,
        help="run a negative prompt too (default: unless --cfg or the checkpoint's is 1)",
    )
    weights = command.add_argument_group("weights")
    weights.add_argument("--dtype", choices=DTYPES, help="of the transformer")
    weights.add_argument(
        "--bits",
        dest="bits_per_weight",
        type=float,
        metavar="BITS",
        help="of a weight of transformer and Qwen where GGUF files pack them, e.g. 4.5 for Q4_K",
    )
    weights.add_argument("--text-dtype", choices=DTYPES, default="bf16", help="default: bf16")
    weights.add_argument(
        "--vae-dtype", choices=("fp32", "bf16", "fp16"), default="bf16", help="default: bf16"
    )
    command.add_argument("--attention", choices=("dense", "nabla"), help="among visual tokens")
    command.add_argument(
        "--nabla-p",
        type=float,
        metavar="P",
        help="share of attention that NABLA's kept blocks must cover; what it comes to depends on "
        "the clip, so give --density with it",
    )
    command.add_argument(
        "--density", type=float, help="share of blocks that NABLA keeps (default: 0.4)"
    )
    command.add_argument(
        "--magcache",
        dest="cached",
        action="store_true",
        help="keep what MagCache needs of each prompt",
    )
    command.add_argument("--memory", type=float, metavar="GIB", help="what is free on the device")
    command.add_argument(
        "--main-memory",
        type=float,
        metavar="GIB",
        help="what is free of main memory, where weights wait (with --memory)",
    )
    command.add_argument(
        "--all", action="store_true", help="the whole family on cards of 8 to 80 GB, as Markdown"
    )
    command.add_argument("--report", type=Path, help="with --all: write the page here")
    command.set_defaults(read=read_plan, run=run_plan)


def read_plan(args: argparse.Namespace) -> Plan | FamilyPage:
    """Read what a command line asks for.

    Raises:
        ValueError: Options do not go together, or a number is out of its range.
    """
    import torch

    from ..planning.jobs import Request

    if args.report is not None and not args.all:
        raise ValueError("--report is the page about the whole family: give --all with it")
    if args.all:
        return FamilyPage(args.report)
    memory = read_gib("--memory", args.memory)
    main_memory = read_gib("--main-memory", args.main_memory)
    if main_memory is not None and memory is None:
        raise ValueError("--main-memory depends on the device: give --memory with it")
    dtypes = {name: getattr(torch, of_torch) for name, of_torch in DTYPES.items()}
    height, width = args.size or (None, None)
    request = read(
        Request,
        args,
        height=height,
        width=width,
        dtype=dtypes.get(args.dtype),
        text_dtype=dtypes[args.text_dtype],
        vae_dtype=dtypes[args.vae_dtype],
    )
    return Plan(request, memory, main_memory)


def run_plan(asked: Plan | FamilyPage) -> None:
    """Print the plan, or write the page about the family."""
    from ..files import write_text
    from ..planning.jobs import make_job, smaller_sizes
    from ..planning.report import describe, markdown

    if isinstance(asked, Plan):
        job, settings = make_job(asked.request)
        sizes = smaller_sizes(job, settings)
        sys.stdout.write(describe(job, asked.memory, sizes, asked.main_memory) + "\n")
    elif asked.report is None:
        sys.stdout.write(markdown())
    else:
        write_text(asked.report, markdown())
        sys.stdout.write(f"{asked.report}\n")


def _size(text: str) -> Size:
    match = re.fullmatch(r"(\d+)x(\d+)", text)
    if match is None:
        raise argparse.ArgumentTypeError(f"{text!r} is not a size: give HEIGHTxWIDTH in pixels")
    return int(match[1]), int(match[2])
