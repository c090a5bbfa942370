"""Command line: `python -m kandinsky_core generate "a red ball ..."` and `identify FILE`."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from .errors import import_extra

DTYPES = ("fp32", "bf16", "fp16")


def build_parser() -> argparse.ArgumentParser:
    """Describe the command line."""
    parser = argparse.ArgumentParser(
        prog="kandinsky_core", description="Kandinsky 5: videos and images from prompts."
    )
    commands = parser.add_subparsers(dest="command", required=True)

    make = commands.add_parser("generate", help="make a video or an image")
    make.add_argument("prompt", help="what to show")
    make.add_argument("--model", default="nano", help='"nano" (default), a file or a folder')
    make.add_argument("--vae", type=Path, help="the VAE, where the model is a single file")
    make.add_argument("--text-encoder", type=Path, help="folder of the text encoders, likewise")
    make.add_argument("--task", choices=("t2v", "i2v", "t2i", "i2i"), default="t2v")
    make.add_argument("--image", type=Path, help="image to start from (i2v) or to edit (i2i)")
    make.add_argument("--negative-prompt", help="what to avoid")
    make.add_argument("--height", type=int, help="pixels")
    make.add_argument("--width", type=int, help="pixels")
    make.add_argument("--frames", type=int, help="clip length, 4k + 1")
    make.add_argument("--steps", type=int, help="sampling steps")
    make.add_argument("--cfg", type=float, help="guidance scale; 1 turns it off")
    make.add_argument("--shift", type=float, help="warp of the times towards noise")
    make.add_argument("--seed", type=int, default=0)
    make.add_argument("--dtype", choices=DTYPES, help="of the weights (default: as in the file)")
    make.add_argument("--device", default="cpu", help='such as "cpu", "cuda" or "mps"')
    make.add_argument("--output", type=Path, help=".mp4 or .png; default output.mp4 or output.png")
    make.add_argument("--sheet", type=Path, help="also write a contact sheet .png here")
    make.set_defaults(run=run_generate)

    tell = commands.add_parser("identify", help="say what a weight file is and what it needs")
    tell.add_argument("path", type=Path)
    tell.add_argument("--json", action="store_true", help="print JSON")
    tell.set_defaults(run=run_identify)
    return parser


def run_generate(args: argparse.Namespace) -> None:
    """Make one video or image and write it."""
    import torch

    from .flow import Step
    from .generate import STILL_TASKS, GenerateRequest, generate
    from .pipeline import load_pipeline
    from .video import read_image, write_contact_sheet, write_image, write_video

    still = args.task in STILL_TASKS
    output = args.output or Path("output.png" if still else "output.mp4")
    expected = ".png" if still else ".mp4"
    if output.suffix.lower() != expected:
        raise ValueError(
            f"--output {output} cannot hold the result of {args.task}; give a {expected} file"
        )
    tqdm = import_extra("tqdm", "video").tqdm
    dtypes = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16, None: None}
    request = GenerateRequest(
        prompt=args.prompt,
        task=args.task,
        negative_prompt=args.negative_prompt,
        image=read_image(args.image) if args.image else None,
        height=args.height,
        width=args.width,
        num_frames=args.frames,
        num_steps=args.steps,
        guidance_scale=args.cfg,
        shift=args.shift,
        seed=args.seed,
    )
    pipeline = load_pipeline(
        args.model,
        vae=args.vae,
        text_encoder=args.text_encoder,
        dtype=dtypes[args.dtype],
        device=args.device,
    )
    with tqdm(desc="sampling", unit="step") as bar:

        def on_step(step: Step) -> None:
            bar.total = step.num_steps
            bar.update()

        result = generate(pipeline, request, on_step=on_step)
    metadata = {"prompt": args.prompt, "seed": str(args.seed), "model": str(args.model)}

    kept: list[np.ndarray] = []

    def frames() -> Iterator[np.ndarray]:
        for frame in tqdm(result.frames(), "decoding", result.shape.num_frames, unit="frame"):
            if args.sheet or still:
                kept.append(frame)
            yield frame

    if still:
        write_image(output, next(frames()), metadata=metadata)
    else:
        write_video(output, frames(), fps=result.settings.fps, metadata=metadata)
    _say(str(output))
    if args.sheet:
        write_contact_sheet(args.sheet, np.stack(kept))
        _say(str(args.sheet))


def run_identify(args: argparse.Namespace) -> None:
    """Print what a checkpoint is, what was assumed, and the settings it needs."""
    from .checkpoint import identify

    info = identify(args.path)
    _say(json.dumps(info.to_dict(), indent=2) if args.json else info.describe())


def _say(line: str) -> None:
    sys.stdout.write(line + "\n")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; errors a user can cause become one sentence and exit code 1."""
    args = build_parser().parse_args(argv)
    try:
        args.run(args)
    except (ValueError, ImportError, OSError) as error:
        sys.stderr.write(f"error: {error}\n")
        return 1
    except KeyboardInterrupt:
        sys.stderr.write("cancelled\n")
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
