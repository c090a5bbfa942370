"""Prompt expansion on the command line: the command `expand`, and what `generate --expand` does."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import import_extra
from ..family.settings import TASKS

if TYPE_CHECKING:
    import numpy as np

    from ..family.settings import Task
    from ..text import TextEncoder

EXPAND = """\
Have Qwen2.5-VL write a short prompt out in the detail that the models were trained on. If nothing
comes of it, the prompt is printed as it was, and why on the error output.
"""


def add_expansion(command: argparse.ArgumentParser) -> argparse._ArgumentGroup:
    """Add how to write a prompt out; return the group."""
    how = command.add_argument_group("prompt expansion")
    how.add_argument(
        "--keep-language",
        action="store_true",
        help="write in the language of the prompt (default: in English)",
    )
    how.add_argument(
        "--max-tokens", type=int, default=256, help="most tokens to write (default: 256)"
    )
    how.add_argument(
        "--temperature",
        type=float,
        default=0.7,
        help="0 always takes the likeliest word, up to 2 is more varied (default: 0.7)",
    )
    return how


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
    command.set_defaults(run=run_expand)


def run_expand(args: argparse.Namespace) -> None:
    """Print the prompt, written out."""
    from ..text import load_qwen_clip_folder
    from ..video import read_image

    task: Task = args.task or ("t2v" if args.image is None else "i2v")
    encoder = load_qwen_clip_folder(args.text_encoder, device=args.device)
    image = None if args.image is None else read_image(args.image)
    sys.stdout.write(expand_with(args, encoder, task, image) + "\n")


def expand_with(
    args: argparse.Namespace, encoder: TextEncoder, task: Task, image: np.ndarray | None
) -> str:
    """Write the prompt of a command line out under a progress bar, and say what was done.

    Args:
        args: The prompt, and how to write it out.
        encoder: What writes.
        task: What the prompt is for.
        image: uint8 (H, W, 3) RGB that the text encoder looks at, if there is one.

    Returns:
        The prompt, written out.
    """
    from ..text import expand_prompt
    from ..video import to_pixels

    pixels = None if image is None else to_pixels(image)[:, :, 0]
    tqdm = import_extra("tqdm", "video").tqdm
    with tqdm(desc="writing", unit="token", total=args.max_tokens, delay=1e-3, leave=False) as bar:
        result = expand_prompt(
            encoder,
            args.prompt,
            task=task,
            image=pixels,
            language="as written" if args.keep_language else "English",
            seed=args.seed,
            max_tokens=args.max_tokens,
            temperature=args.temperature,
            on_token=bar.update,
        )
    sys.stderr.write(f"note: {result.note}\n")
    return result.prompt
