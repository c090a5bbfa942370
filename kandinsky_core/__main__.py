"""Command line: `python -m kandinsky_core`; `--help` lists the commands."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from .cli_expand import add_expand_command, add_expansion, expand_with
from .cli_lora import add_lora_commands
from .cli_magcache import add_calibrate, make_magcaches
from .cli_options import add_attention, add_model, add_prompt, add_sampling, add_speed
from .cli_output import check_outputs, note, sample_with_progress, say, suffix_of, write_result
from .cli_request import choose_task, load_parts, make_request, read_given_image
from .plan_cli import add_plan
from .workflows import add_convert

if TYPE_CHECKING:
    from .pipeline import Pipeline

GIB = 2**30

EXAMPLES = """\
examples:
  %(prog)s "a red circle moves to the right"
  %(prog)s "it turns" --image ball.png --output ball.mp4
  %(prog)s "a fox in the snow" --model Kandinsky-5.0-T2V-Lite-sft-5s-Diffusers --device cuda
  %(prog)s "a fox in the snow" --model kandinsky5lite_t2v_sft_5s.safetensors \\
      --vae hunyuan_video_vae.safetensors --text-encoder folder_with_text_encoders
  %(prog)s --prompts prompts.txt --output clips
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
    add_prompt(make, or_list=True)
    make.add_argument(
        "--output",
        type=Path,
        help=".mp4 or .png (default: output.mp4, output.png), or a folder for --prompts (outputs)",
    )
    make.add_argument("--sheet", type=Path, help="also write a contact sheet .png here")
    parts = add_model(make)
    parts.add_argument(
        "--vae-memory", type=float, metavar="GIB", help="most that the VAE may take (default: 8)"
    )
    add_sampling(make)
    add_attention(make)
    add_speed(make)
    add_expansion(make).add_argument(
        "--expand", action="store_true", help="have the text encoder write the prompt out first"
    )
    make.set_defaults(run=run_generate)
    add_plan(commands)
    add_calibrate(commands)

    show = commands.add_parser("show", help="say what a video or an image was made with")
    show.add_argument("path", type=Path, help="an .mp4 or .png of this program or of ComfyUI")
    show.set_defaults(run=run_show)

    add_expand_command(commands)

    tell = commands.add_parser("identify", help="say what a weight file is and what it needs")
    tell.add_argument("path", type=Path, help="a .safetensors or .gguf file, or a folder")
    tell.add_argument("--json", action="store_true", help="print JSON")
    tell.set_defaults(run=run_identify)

    add_lora_commands(commands)
    add_convert(commands)

    kernel = commands.add_parser(
        "build-kernel", help="compile the CPU kernel of sparse attention, once (optional)"
    )
    kernel.add_argument("--verbose", action="store_true", help="show what the compiler says")
    kernel.set_defaults(run=run_build_kernel)
    return parser


def run_generate(args: argparse.Namespace) -> None:
    """Make one video or image, or one for every prompt of a list.

    Whatever can be refused is refused at the start.
    """
    from .cli_jobs import checksum, list_jobs, naming, result_metadata, unfinished
    from .generate import settle
    from .pipeline import identify_model

    info = identify_model(args.model)
    task = choose_task(args, info)
    jobs = unfinished(list_jobs(args, suffix_of(task)))
    if not jobs:
        return
    for job in jobs:
        job.output = check_outputs(job.output, job.sheet, task)
    if args.vae_memory is not None and not args.vae_memory > 0:
        raise ValueError(f"--vae-memory is {args.vae_memory}: give GiB, more than 0")
    caches = make_magcaches(jobs, info, task)
    image = read_given_image(args)
    requests = [make_request(job, task, image) for job in jobs]
    pipeline = load_parts(args)
    for match in pipeline.loras:
        note(match.note)
    for job, request in zip(jobs, requests, strict=True):
        with naming(job):
            settle(pipeline, request)
    budget = None if args.vae_memory is None else int(args.vae_memory * GIB)
    sha256 = ""
    for number, (job, request, cache) in enumerate(zip(jobs, requests, caches, strict=True), 1):
        if args.prompts is not None:
            sys.stderr.write(f"[{number}/{len(jobs)}] {job.prompt}\n")
        with naming(job):
            if args.expand:
                expanded = expand_with(job, pipeline.text_encoder, task)
                request = replace(request, prompt=expanded)
            _mention_unknown_words(pipeline, request.prompt)
            result = sample_with_progress(pipeline, request, cache)
        sha256 = sha256 or checksum(info)
        metadata = result_metadata(job, request.prompt, result, task=task, sha256=sha256)
        if cache is not None:
            metadata["magcache"] = f"{cache.threshold:g}, {cache.ratios.source}"
        write_result(result, job.output, job.sheet, metadata, budget)
        if cache is not None:
            sys.stderr.write(cache.summary() + "\n")


def run_show(args: argparse.Namespace) -> None:
    """Print what a video or an image was made with."""
    from .video import describe_texts

    say(describe_texts(args.path))


def run_identify(args: argparse.Namespace) -> None:
    """Print what a checkpoint is, what was assumed, and the settings it needs."""
    from .checkpoint import identify

    info = identify(args.path)
    say(json.dumps(info.to_dict(), indent=2) if args.json else info.describe())


def run_build_kernel(args: argparse.Namespace) -> None:
    """Compile the attention kernel, say where it is and what it is worth here."""
    from .attention import build_kernel, kernel_speeds

    say(str(build_kernel(verbose=args.verbose)))
    for dtype, speed in kernel_speeds().items():
        choice = "used" if speed >= 1 else "not used unless it is asked for"
        say(f"{dtype}: {speed:g} times the speed of plain PyTorch on this machine, {choice}")


def _mention_unknown_words(pipeline: Pipeline, prompt: str) -> None:
    from .text import NanoTextEncoder

    if isinstance(pipeline.text_encoder, NanoTextEncoder):
        words = pipeline.text_encoder.unknown_words(prompt)
        if words:
            note(f"this model never learnt: {', '.join(words)}")


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
