"""Command line: `python -m kandinsky_core generate "a red ball ..."` and `identify FILE`."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from .errors import import_extra

if TYPE_CHECKING:
    from .generate import Generated, GenerateRequest
    from .pipeline import Pipeline
    from .settings import Task

GIB = 2**30

EXAMPLES = """\
examples:
  %(prog)s "a red circle moves to the right"
  %(prog)s "it turns" --image ball.png --output ball.mp4
  %(prog)s "a fox in the snow" --model Kandinsky-5.0-T2V-Lite-sft-5s-Diffusers --device cuda
  %(prog)s "a fox in the snow" --model kandinsky5lite_t2v_sft_5s.safetensors \\
      --vae hunyuan_video_vae.safetensors --text-encoder folder_with_text_encoders
"""


def build_parser() -> argparse.ArgumentParser:
    """Describe the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m kandinsky_core",
        description="Kandinsky 5: videos and images from prompts.",
    )
    commands = parser.add_subparsers(dest="command", required=True)

    make = commands.add_parser(
        "generate",
        help="make a video or an image",
        description="Make a video or an image. What is left out is as the checkpoint was made for.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    make.add_argument("prompt", help="what to show")
    make.add_argument(
        "--task",
        choices=("t2v", "i2v", "t2i", "i2i"),
        help="text or image to video or image (default: the model's, by whether --image is given)",
    )
    make.add_argument("--image", type=Path, help="image to start from (i2v) or to edit (i2i)")
    make.add_argument("--output", type=Path, help=".mp4 or .png (default: output.mp4, output.png)")
    make.add_argument("--sheet", type=Path, help="also write a contact sheet .png here")

    parts = make.add_argument_group("model")
    parts.add_argument("--model", default="nano", help='"nano" (default), a file or a folder')
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
        "--vae-memory", type=float, metavar="GIB", help="most that the VAE may take (default: 8)"
    )

    how = make.add_argument_group("sampling")
    how.add_argument("--negative-prompt", help="what to avoid")
    how.add_argument("--height", type=int, help="pixels")
    how.add_argument("--width", type=int, help="pixels")
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
    how.add_argument("--seed", type=int, default=0, help="of the starting noise (default: 0)")
    make.set_defaults(run=run_generate)

    tell = commands.add_parser("identify", help="say what a weight file is and what it needs")
    tell.add_argument("path", type=Path, help="a .safetensors file or a folder")
    tell.add_argument("--json", action="store_true", help="print JSON")
    tell.set_defaults(run=run_identify)
    return parser


def run_generate(args: argparse.Namespace) -> None:
    """Make one video or image and write it; whatever can be refused is refused at the start."""
    import torch

    from .generate import GenerateRequest, default_task
    from .pipeline import identify_model, load_pipeline
    from .video import read_image

    info = identify_model(args.model)
    task = args.task or default_task(info.tasks, with_image=args.image is not None)
    output = check_outputs(args.output, args.sheet, task)
    if args.vae_memory is not None and not args.vae_memory > 0:
        raise ValueError(f"--vae-memory is {args.vae_memory}: give GiB, more than 0")
    request = GenerateRequest(
        prompt=args.prompt,
        task=task,
        negative_prompt=args.negative_prompt,
        image=read_image(args.image) if args.image else None,
        height=args.height,
        width=args.width,
        num_frames=args.frames,
        num_steps=args.steps,
        guidance_scale=args.cfg,
        shift=args.shift,
        rope_scale=tuple(args.rope_scale) if args.rope_scale else None,
        seed=args.seed,
    )
    dtypes = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
    pipeline = load_pipeline(
        args.model,
        vae=args.vae,
        text_encoder=args.text_encoder,
        dtype=dtypes.get(args.dtype),
        device=args.device,
    )
    _mention_unknown_words(pipeline, args.prompt)
    result = sample_with_progress(pipeline, request)
    metadata = {
        "prompt": args.prompt,
        "negative_prompt": result.settings.negative_prompt,
        "model": str(args.model),
        "task": task,
        "seed": str(args.seed),
        "steps": str(result.settings.num_steps),
        "cfg": f"{result.settings.guidance_scale:g}",
        "shift": f"{result.settings.shift:g}",
    }
    budget = None if args.vae_memory is None else int(args.vae_memory * GIB)
    write_result(result, output, args.sheet, metadata, budget)


def check_outputs(output: Path | None, sheet: Path | None, task: Task) -> Path:
    """Refuse outputs that could not be written; return where the result goes."""
    from .files import check_writable
    from .generate import STILL_TASKS

    suffix = ".png" if task in STILL_TASKS else ".mp4"
    output = output or Path(f"output{suffix}")
    if output.suffix.lower() != suffix:
        raise ValueError(
            f"--output {output} cannot hold the result of {task}: give a {suffix} file"
        )
    if sheet is not None and sheet.suffix.lower() != ".png":
        raise ValueError(f"--sheet {sheet} cannot hold a contact sheet: give a .png file")
    if sheet is not None and sheet.resolve() == output.resolve():
        raise ValueError(f"--sheet {sheet} is the --output too: give it another name")
    for path in filter(None, (output, sheet)):
        check_writable(path)
    import_extra("tqdm", "video")
    if suffix == ".mp4":
        import_extra("av", "video")
    return output


def sample_with_progress(pipeline: Pipeline, request: GenerateRequest) -> Generated:
    """Sample under a progress bar, which appears with the first step."""
    from .flow import Step
    from .generate import generate

    tqdm = import_extra("tqdm", "video").tqdm
    with tqdm(desc="sampling", unit="step", delay=1e-3, mininterval=0, miniters=1) as bar:

        def on_step(step: Step) -> None:
            bar.total = step.num_steps
            bar.update()

        return generate(pipeline, request, on_step=on_step)


def write_result(
    result: Generated,
    output: Path,
    sheet: Path | None,
    metadata: dict[str, str],
    memory_budget: int | None,
) -> None:
    """Decode under a progress bar and write what was made, as it comes."""
    from .video import write_contact_sheet, write_image, write_video

    frames: Iterable[np.ndarray] = import_extra("tqdm", "video").tqdm(
        result.frames(memory_budget=memory_budget),
        desc="decoding",
        total=result.shape.num_frames,
        unit="frame",
    )
    shown: list[np.ndarray] = []
    if sheet is not None:
        frames = _remembering(frames, shown)
    if output.suffix.lower() == ".png":
        (image,) = frames
        write_image(output, image, metadata=metadata)
    else:
        write_video(output, frames, fps=result.settings.fps, metadata=metadata)
    _say(str(output))
    if sheet is not None:
        write_contact_sheet(sheet, np.stack(shown), metadata=metadata)
        _say(str(sheet))


def run_identify(args: argparse.Namespace) -> None:
    """Print what a checkpoint is, what was assumed, and the settings it needs."""
    from .checkpoint import identify

    info = identify(args.path)
    _say(json.dumps(info.to_dict(), indent=2) if args.json else info.describe())


def _remembering(frames: Iterable[np.ndarray], shown: list[np.ndarray]) -> Iterator[np.ndarray]:
    for frame in frames:
        shown.append(frame)
        yield frame


def _mention_unknown_words(pipeline: Pipeline, prompt: str) -> None:
    from .text import NanoTextEncoder

    if isinstance(pipeline.text_encoder, NanoTextEncoder):
        words = pipeline.text_encoder.unknown_words(prompt)
        if words:
            sys.stderr.write(f"note: this model never learnt: {', '.join(words)}\n")


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
    except (RuntimeError, MemoryError) as error:
        from .models.tiled_run import is_out_of_memory

        if not is_out_of_memory(error):
            raise
        sys.stderr.write(
            "error: memory ran out; make the clip smaller or shorter, or try --dtype bf16\n"
        )
        return 1
    except KeyboardInterrupt:
        sys.stderr.write("cancelled\n")
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
