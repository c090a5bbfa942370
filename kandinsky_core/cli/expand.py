"""Prompt expansion on the command line: the command `expand`, and what `generate --expand` does."""

from __future__ import annotations

import argparse
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import import_extra
from ..family.settings import TASKS
from .job import Expansion
from .options import add_expansion, read, read_expansion

if TYPE_CHECKING:
    import numpy as np

    from ..family.settings import Task
    from ..text import TextEncoder

EXPAND = """\
Have Qwen2.5-VL write a short prompt out in the detail that the models were trained on. If nothing
comes of it, the prompt is printed as it was, and why on the error output.
"""


@dataclass(frozen=True)
class Expand:
    """A prompt to write out."""

    prompt: str
    """What to make."""
    text_encoder: Path
    """Folder of the text encoders."""
    task: Task
    """What the prompt is for."""
    image: Path | None
    """Picture to start from or to edit."""
    expansion: Expansion
    """How to write."""
    seed: int
    """Of the draws."""
    device: str
    """Where the encoder runs."""


def add_expand_command(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Describe the command `expand`."""
    command = commands.add_parser(
        "expand", help="write a short prompt out in detail", description=EXPAND
    )
    command.add_argument("prompt", help="what to make")
    command.add_argument(
        "--text-encoder",
        type=Path,
        required=True,
        help="folder with text_encoder, tokenizer, text_encoder_2 and tokenizer_2",
    )
    command.add_argument(
        "--task",
        choices=TASKS,
        help="what the prompt is for (default: t2v, with --image i2v)",
    )
    command.add_argument("--image", type=Path, help="picture to start from (i2v) or to edit (i2i)")
    add_expansion(command)
    command.add_argument("--seed", type=int, default=0, help="of the draws (default: 0)")
    command.add_argument("--device", default="cpu", help='"cpu" (default), "cuda", "mps"...')
    command.set_defaults(read=read_expand, run=run_expand)


def read_expand(args: argparse.Namespace) -> Expand:
    """Read what a command line asks for."""
    task = args.task or ("t2v" if args.image is None else "i2v")
    return read(Expand, args, task=task, expansion=read_expansion(args, is_wanted=True))


def run_expand(asked: Expand) -> None:
    """Print the prompt, written out."""
    from ..text import load_qwen_clip_folder
    from ..video import read_image

    encoder = load_qwen_clip_folder(asked.text_encoder, device=asked.device)
    image = None if asked.image is None else read_image(asked.image)
    how = {"task": asked.task, "image": image, "seed": asked.seed}
    sys.stdout.write(write_out(asked.prompt, encoder, asked.expansion, **how) + "\n")


def write_out(
    prompt: str,
    encoder: TextEncoder,
    expansion: Expansion,
    *,
    task: Task,
    image: np.ndarray | None,
    seed: int,
) -> str:
    """Write a prompt out under a progress bar, and say what was done.

    Args:
        prompt: What to write out.
        encoder: What writes.
        expansion: How.
        task: What the prompt is for.
        image: uint8 (H, W, 3) RGB that the text encoder looks at, if there is one.
        seed: Of the draws.

    Returns:
        The prompt, written out.
    """
    from ..text import expand_prompt
    from ..video import to_pixels

    seen = None if image is None else to_pixels(image)[:, :, 0]
    tqdm = import_extra("tqdm", "video").tqdm
    with tqdm(
        desc="writing", unit="token", total=expansion.max_tokens, delay=1e-3, leave=False
    ) as bar:
        result = expand_prompt(
            encoder,
            prompt,
            task=task,
            image=seen,
            language="as written" if expansion.keep_language else "English",
            seed=seed,
            max_tokens=expansion.max_tokens,
            temperature=expansion.temperature,
            on_token=bar.update,
        )
    sys.stderr.write(f"note: {result.note}\n")
    return result.prompt
