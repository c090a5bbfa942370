"""Options that several commands of `__main__.py` share, group by group."""

from __future__ import annotations

import argparse
import math
from pathlib import Path

from ..family.settings import TASKS


def add_prompt(command: argparse.ArgumentParser, *, or_list: bool = False) -> None:
    """Add what to make; with `or_list`, a list of prompts may take the prompt's place."""
    command.add_argument("prompt", nargs="?" if or_list else None, help="what to show")
    if or_list:
        command.add_argument(
            "--prompts",
            type=Path,
            metavar="FILE",
            help="text with a prompt on each line, and settings behind it where it has its own "
            "(a red circle | seed=7); outputs that exist already are skipped",
        )
        command.add_argument(
            "--split",
            choices=("auto", "lines", "blocks"),
            default="auto",
            help="what separates prompts of a list: lines, or blocks with --- or empty lines "
            "between them (default: blocks if there is a line of ---)",
        )
    command.add_argument(
        "--task",
        choices=TASKS,
        help="text or image to video or image (default: the model's, by whether --image is given; "
        "i2v with --extend)",
    )
    command.add_argument("--image", type=Path, help="image to start from (i2v) or to edit (i2i)")
    command.add_argument(
        "--extend",
        type=Path,
        metavar="CLIP",
        help="video to go on from, of a size that the model makes; the output is it and what "
        "follows (experimental: the weights were trained to continue one frame, not several)",
    )
    command.add_argument(
        "--overlap",
        type=int,
        metavar="FRAMES",
        help="last frames of that video that the new part begins with, 4k + 1, which --frames "
        "counts too: 1 is image to video from the last frame, 5 or 9 hand on the motion (default: "
        "1)",
    )
    command.add_argument(
        "--last-frame",
        type=Path,
        metavar="IMAGE",
        help="image to end in, beside --image or --extend; the same as --image makes a loop "
        "(experimental: the weights were not trained for a given last frame)",
    )


def add_model(command: argparse.ArgumentParser) -> argparse._ArgumentGroup:
    """Add which weights; return the group."""
    parts = command.add_argument_group("model")
    parts.add_argument(
        "--model", default="nano", help='"nano" (default), "nano-edit", a file or a folder'
    )
    parts.add_argument("--vae", type=Path, help="VAE file, where the model is a single file")
    parts.add_argument(
        "--text-encoder",
        type=Path,
        help="folder with text_encoder, tokenizer, text_encoder_2 and tokenizer_2, likewise",
    )
    parts.add_argument(
        "--dtype", choices=("fp32", "bf16", "fp16"), help="of the weights (default: as in the file)"
    )
    parts.add_argument("--device", default="cpu", help='"cpu" (default), "cuda", "mps"...')
    parts.add_argument(
        "--lora",
        action="append",
        default=[],
        metavar="FILE[:STRENGTH]",
        help="add a LoRA, at strength 1 unless another is given; may be repeated",
    )
    parts.add_argument(
        "--no-lora-trigger",
        action="store_true",
        help="do not put the LoRAs' trigger texts before the prompt",
    )
    return parts


def add_sampling(command: argparse.ArgumentParser) -> None:
    """Add how to sample; what is left out comes from the checkpoint."""
    how = command.add_argument_group("sampling")
    how.add_argument("--negative-prompt", help="what to avoid")
    how.add_argument("--height", type=int, help="pixels")
    how.add_argument("--width", type=int, help="pixels")
    how.add_argument(
        "--size-class",
        choices=("auto", "small", "large"),
        default="auto",
        help="sizes that a checkpoint was trained at, with their settings: small is 512 (nano "
        "128), large 1024 on Pro (nano 256) (default: by height and width; small without them)",
    )
    how.add_argument("--frames", type=int, help="clip length, 4k + 1")
    how.add_argument("--steps", type=int, help="sampling steps")
    how.add_argument("--cfg", type=float, help="guidance scale; 1 turns it off")
    how.add_argument("--shift", type=float, help="warp of the times towards noise")
    how.add_argument(
        "--rope-scale",
        type=float,
        nargs=3,
        metavar=("T", "H", "W"),
        help="divisors of the rotary angles",
    )
    how.add_argument(
        "--no-normalize",
        dest="normalize",
        action="store_false",
        help="i2v: leave the first frames as sampled, without the reference's correction (with "
        "--extend and --last-frame they always are)",
    )
    how.add_argument(
        "--unguided-last-step", action="store_true", help="no guidance at the last step"
    )
    how.add_argument("--seed", type=int, default=0, help="of the starting noise (default: 0)")


def add_attention(command: argparse.ArgumentParser) -> None:
    """Add which tokens see each other, and what computes it."""
    which = command.add_argument_group("attention")
    which.add_argument(
        "--attention",
        choices=("auto", "dense", "nabla"),
        default="auto",
        help="nabla is sparse, for sizes that divide into its tiles (default: the checkpoint's)",
    )
    which.add_argument(
        "--nabla-p",
        type=float,
        metavar="P",
        help="share of attention that NABLA's kept blocks must cover; less is sparser "
        "(default: the checkpoint's)",
    )
    which.add_argument(
        "--attention-backend",
        default="auto",
        metavar="NAME",
        help="dense, gathered, flex, compiled, sage...; a wrong name is answered with those that "
        "can be used here (default: auto, the fastest that is exact)",
    )


def add_speed(command: argparse.ArgumentParser) -> None:
    """Add what makes sampling faster and changes its result."""
    speed = command.add_argument_group("speed")
    speed.add_argument(
        "--magcache",
        type=float,
        nargs="?",
        const=True,
        metavar="THRESHOLD",
        help="skip the blocks at steps that would change little; more is faster and less exact "
        "(without a number: the reference's 0.12)",
    )
    speed.add_argument(
        "--magcache-ratios",
        type=Path,
        metavar="FILE",
        help="ratios that `calibrate` measured (default: those published for the checkpoint); "
        "turns MagCache on",
    )


def parse_lora(value: str) -> tuple[Path, float]:
    """Take `FILE[:STRENGTH]` apart.

    Raises:
        ValueError: The strength is not a finite number.
    """
    file, colon, last = value.rpartition(":")
    try:
        strength = float(last)
    except ValueError:
        colon = ""  # a drive's, or part of the name
    if not colon:
        return Path(value), 1.0
    if not math.isfinite(strength):
        raise ValueError(f"--lora {value} has the strength {last}: give a number such as 0.8")
    return Path(file), strength
