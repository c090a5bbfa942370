"""Command line: `python -m kandinsky_core`; `--help` lists the commands."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from .cli_expand import add_expand_command, add_expansion, expand_with
from .cli_lora import add_lora_commands
from .cli_options import add_model, add_prompt, add_sampling, add_speed, parse_lora
from .cli_output import check_outputs, sample_with_progress, say, suffix_of, write_result
from .errors import import_extra
from .plan_cli import add_plan
from .workflows import add_convert

if TYPE_CHECKING:
    from .caching import MagCache
    from .checkpoint import CheckpointInfo
    from .generate import GenerateRequest
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
  %(prog)s --prompts prompts.txt --output clips
"""
CALIBRATE = """\
Measure how much each step of a checkpoint resembles the one before it, which MagCache needs where
no such ratios were published. One run in full measures them for any prompt and number of steps.
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
    add_speed(make)
    add_expansion(make).add_argument(
        "--expand", action="store_true", help="have the text encoder write the prompt out first"
    )
    make.set_defaults(run=run_generate)
    add_plan(commands)

    measure = commands.add_parser(
        "calibrate", help="measure a checkpoint's MagCache ratios", description=CALIBRATE
    )
    add_prompt(measure)
    measure.add_argument(
        "--output",
        type=Path,
        default=Path("magcache_ratios.json"),
        help=".json (default: magcache_ratios.json)",
    )
    add_model(measure)
    add_sampling(measure)
    measure.set_defaults(run=run_calibrate)

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
    task = _task(args, info)
    jobs = unfinished(list_jobs(args, suffix_of(task)))
    if not jobs:
        return
    for job in jobs:
        job.output = check_outputs(job.output, job.sheet, task)
    if args.vae_memory is not None and not args.vae_memory > 0:
        raise ValueError(f"--vae-memory is {args.vae_memory}: give GiB, more than 0")
    caches = [make_magcache(job, info) for job in jobs]
    image = _image(args)
    requests = [_request(job, task, image) for job in jobs]
    pipeline = _load(args)
    for match in pipeline.loras:
        _note(match.note)
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


def run_calibrate(args: argparse.Namespace) -> None:
    """Sample once in full and write the ratios between its steps."""
    from .caching import Calibration, describe_release, save_ratios
    from .files import check_writable
    from .pipeline import identify_model

    info = identify_model(args.model)
    task = _task(args, info)
    if args.output.suffix.lower() != ".json":
        raise ValueError(f"--output {args.output} cannot hold ratios: give a .json file")
    check_writable(args.output)
    import_extra("tqdm", "video")
    calibration, request = Calibration(), _request(args, task, _image(args))
    result = sample_with_progress(_load(args), request, calibration)
    release = describe_release(info.release)
    measured_on = {
        "release": release,
        "model": str(args.model),
        "task": task,
        "size": list(result.shape.size),
        "frames": result.shape.num_frames,
        "steps": result.settings.num_steps,
        "cfg": result.settings.guidance_scale,
        "shift": result.settings.shift,
        "prompt": args.prompt,
        "seed": args.seed,
    }
    save_ratios(args.output, calibration.ratios(release), measured_on)
    say(str(args.output))
    sys.stderr.write(f"use them with: generate --magcache --magcache-ratios {args.output}\n")


def make_magcache(args: argparse.Namespace, info: CheckpointInfo) -> MagCache | None:
    """The MagCache that was asked for, with a note where its ratios may not fit the model."""
    from .caching import MagCache, describe_release, find_ratios, load_ratios

    if args.magcache is None and args.magcache_ratios is None:
        return None
    release, note = describe_release(info.release), ""
    if args.magcache_ratios is not None:
        ratios, measured_on = load_ratios(args.magcache_ratios)
        if measured_on.get("release") != release:
            note = f"{ratios.source} was measured on {measured_on.get('release')}, not on {release}"
    else:
        settings = info.settings
        if args.height and args.width:
            settings = settings.for_size(args.height, args.width)
        ratios = find_ratios(info.release, settings)
        assumed = [
            fact
            for fact in ("task", "seconds", "stage")
            if getattr(info, fact) is not None and info.sources.get(fact) == "default"
        ]
        if assumed:
            guess = ", ".join(assumed)
            note = f"MagCache takes this model for {release} (a guess: {guess})"
    _note(note)
    if isinstance(args.magcache, float):
        return MagCache(ratios, threshold=args.magcache)
    return MagCache(ratios)


def _task(args: argparse.Namespace, info: CheckpointInfo) -> Task:
    from .generate import default_task

    return args.task or default_task(info.tasks, with_image=args.image is not None)


def _image(args: argparse.Namespace) -> np.ndarray | None:
    from .video import read_image

    return read_image(args.image) if args.image else None


def _request(args: argparse.Namespace, task: Task, image: np.ndarray | None) -> GenerateRequest:
    from .generate import GenerateRequest

    return GenerateRequest(
        prompt=args.prompt,
        task=task,
        negative_prompt=args.negative_prompt,
        image=image,
        height=args.height,
        width=args.width,
        num_frames=args.frames,
        num_steps=args.steps,
        guidance_scale=args.cfg,
        shift=args.shift,
        rope_scale=tuple(args.rope_scale) if args.rope_scale else None,
        seed=args.seed,
        use_triggers=not args.no_lora_trigger,
        normalize=args.normalize,
        unguided_last_step=args.unguided_last_step,
    )


def _load(args: argparse.Namespace) -> Pipeline:
    import torch

    from .pipeline import load_pipeline

    dtypes = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
    return load_pipeline(
        args.model,
        vae=args.vae,
        text_encoder=args.text_encoder,
        dtype=dtypes.get(args.dtype),
        device=args.device,
        loras=[parse_lora(each) for each in args.lora],
    )


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
            _note(f"this model never learnt: {', '.join(words)}")


def _note(text: str) -> None:
    if text:
        sys.stderr.write(f"note: {text}\n")


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
