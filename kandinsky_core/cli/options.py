"""Options that several commands share, group by group, and what each group asks for.

Namespaces of argparse end in the `read_...` functions here and in the commands' files.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from ..family.settings import TASKS
from .job import Caching, Expansion, Given, Job, ModelParts, Outputs

if TYPE_CHECKING:
    from ..generate import GenerateRequest

GIB = 2**30
_Value = TypeVar("_Value")


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
        dest="loras",
        action="append",
        default=[],
        metavar="FILE[:STRENGTH]",
        help="add a LoRA, at strength 1 unless another is given; may be repeated",
    )
    parts.add_argument(
        "--no-lora-trigger",
        dest="use_triggers",
        action="store_false",
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
    how.add_argument(
        "--frames", dest="num_frames", type=int, metavar="FRAMES", help="clip length, 4k + 1"
    )
    how.add_argument("--steps", dest="num_steps", type=int, metavar="STEPS", help="sampling steps")
    how.add_argument(
        "--cfg",
        dest="guidance_scale",
        type=float,
        metavar="CFG",
        help="guidance scale; 1 turns it off",
    )
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


def reader(kind: type[_Value]) -> Callable[[argparse.Namespace], _Value]:
    """Make a function that makes a dataclass of the options that are called as its fields are."""
    return lambda args: read(kind, args)


def read(kind: type[_Value], args: argparse.Namespace, **given: Any) -> _Value:
    """Make a dataclass of the options that are called as its fields are.

    Args:
        kind: Of the dataclass; fields without an option keep their defaults.
        args: The options.
        **given: Fields whose values are others than the options'.
    """
    names = {field.name for field in fields(kind)}  # pyright: ignore[reportArgumentType]
    return kind(**{name: value for name, value in vars(args).items() if name in names} | given)


def read_request(args: argparse.Namespace) -> GenerateRequest:
    """Read what to make; what is given is still a path, and the prompt may come from a list.

    Raises:
        ValueError: There is an overlap without a video.
    """
    from ..generate import GenerateRequest

    if args.overlap is not None and args.extend is None:
        raise ValueError(
            f"--overlap {args.overlap} is of the video to go on from: give it with --extend"
        )
    return read(
        GenerateRequest,
        args,
        prompt=args.prompt or "",
        image=None,
        last_frame=None,
        overlap=1 if args.overlap is None else args.overlap,
        rope_scale=tuple(args.rope_scale) if args.rope_scale else None,
        attention=None if args.attention == "auto" else args.attention,
    )


def read_model(args: argparse.Namespace) -> ModelParts:
    """Read which weights, and what computes with them."""
    return read(ModelParts, args, loras=tuple(_lora(each) for each in args.loras))


def read_expansion(args: argparse.Namespace, *, is_wanted: bool) -> Expansion:
    """Read how to write a prompt out."""
    return read(Expansion, args, is_wanted=is_wanted)


def read_job(args: argparse.Namespace) -> Job:
    """Read a job of `generate`.

    Raises:
        ValueError: A number is out of its range, or there is an overlap without a video.
    """
    outputs = read(Outputs, args, vae_memory=read_gib("--vae-memory", args.vae_memory))
    threshold = args.magcache if isinstance(args.magcache, float) else None
    return Job(
        read_request(args),
        read_model(args),
        read(Given, args),
        outputs,
        read_expansion(args, is_wanted=args.expand),
        Caching(
            args.magcache is not None or args.magcache_ratios is not None,
            threshold,
            args.magcache_ratios,
        ),
    )


def read_gib(option: str, gib: float | None) -> int | None:
    """Return the bytes of an option in GiB.

    Raises:
        ValueError: It is not above 0, or no number of bytes.
    """
    if gib is not None and not 0 < gib * GIB < math.inf:
        raise ValueError(f"{option} is {gib}: give GiB, more than 0")
    return None if gib is None else int(gib * GIB)


def _lora(value: str) -> tuple[Path, float]:
    """Take `FILE[:STRENGTH]` apart."""
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
