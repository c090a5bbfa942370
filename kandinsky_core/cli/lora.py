"""`python -m kandinsky_core lora`: what a LoRA file is, and writing it in another style."""

from __future__ import annotations

import sys
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ..checkpoint import Lora

from .options import reader

STYLES = ("comfyui", "diffusers", "peft")


@dataclass(frozen=True)
class ShowLora:
    """A LoRA to describe."""

    path: Path
    """A file, or PEFT's folder."""


@dataclass(frozen=True)
class ConvertLora:
    """A LoRA to write anew."""

    path: Path
    """A file, or PEFT's folder."""
    output: Path
    """File to write."""
    style: str
    """One of `STYLES`."""


def add_lora_commands(commands: Any) -> None:
    """Add `lora show` and `lora convert` to the command line's commands."""
    lora = commands.add_parser("lora", help="say what a LoRA is, or convert it")
    verbs = lora.add_subparsers(dest="verb", required=True)

    show = verbs.add_parser("show", help="say what a LoRA is and which models it fits")
    show.add_argument("path", type=Path, help="a .safetensors file, or PEFT's folder")
    show.set_defaults(read=reader(ShowLora), run=run_show)

    convert = verbs.add_parser(
        "convert",
        help="write a LoRA in the style another program reads",
        description="Write a LoRA as ComfyUI's own loaders, Diffusers, or PEFT and the official "
        "pipelines read it. Trigger text and strength carry over.",
    )
    convert.add_argument("path", type=Path, help="a .safetensors file, or PEFT's folder")
    convert.add_argument("output", type=Path, help="the .safetensors file to write")
    convert.add_argument("--style", choices=STYLES, required=True)
    convert.set_defaults(read=reader(ConvertLora), run=run_convert)


def run_show(asked: ShowLora) -> None:
    """Print what a LoRA is."""
    from ..checkpoint import read_lora

    sys.stdout.write(describe(read_lora(asked.path)) + "\n")


def run_convert(asked: ConvertLora) -> None:
    """Write a LoRA in another style."""
    from ..checkpoint import name_layers, read_lora, save_lora

    if asked.output.suffix != ".safetensors":
        raise ValueError(f"{asked.output} cannot hold a LoRA: give a .safetensors file")
    match = name_layers(read_lora(asked.path))
    if match.note:
        sys.stderr.write(f"note: {match.note}\n")
    trigger, metadata = match.lora.trigger, match.lora.metadata
    save_lora(asked.output, match.pairs, asked.style, trigger=trigger, metadata=metadata)
    sys.stdout.write(f"{asked.output}\n")


def describe(lora: Lora) -> str:
    """Return several lines for a reader: style, ranks, strength as trained, layers, trigger,
    models."""
    from ..checkpoint import fitting_variants, name_layers

    match = name_layers(lora)
    ranks = " and ".join(map(str, lora.ranks))
    scales = sorted({pair.scale for pair in lora.pairs.values()})
    scale = f"{scales[0]:g}" if len(scales) == 1 else f"{scales[0]:g} to {scales[-1]:g}"
    # by a pair's own rank: alpha differs between layers where either does
    alphas = sorted({pair.scale * pair.rank for pair in lora.pairs.values()})
    alpha = f"{alphas[0]:g}" if len(alphas) == 1 else f"{alphas[0]:g} to {alphas[-1]:g}"
    dtype = str(next(iter(lora.pairs.values())).down.dtype).removeprefix("torch.")
    kinds = Counter(_kind(module) for module in match.pairs)
    fits = fitting_variants(lora)
    lines = [
        str(lora.path),
        f"  LoRA with {lora.style} names, {len(lora.pairs)} layers in {dtype}",
        f"  rank {ranks}, alpha {alpha} ({lora.alpha_source}): scale {scale}",
        "  changes " + ", ".join(f"{count} x {kind}" for kind, count in kinds.items()),
        f"  trigger {lora.trigger!r}" if lora.trigger else "  no trigger text",
        f"  fits {', '.join(fits)}" if fits else "  fits no model of this package as a whole",
    ]
    if match.left_out:
        lines.append(f"  {match.note}")
    return "\n".join(lines)


def _kind(module: str) -> str:
    """Return a layer's place in its block: "self_attention.to_query" for the one in any block."""
    return ".".join(part for part in module.split(".")[-2:] if not part.isdigit())
