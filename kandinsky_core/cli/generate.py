"""`generate`: one video or image, or one for every prompt of a list."""

from __future__ import annotations

import argparse
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from .expand import write_out
from .job import Job
from .magcache import make_magcaches
from .options import (
    add_attention,
    add_expansion,
    add_model,
    add_prompt,
    add_sampling,
    add_speed,
    read_job,
)
from .output import check_outputs, note, sample_with_progress, write_result
from .request import load_parts, read_shown, with_shown, with_task

if TYPE_CHECKING:
    from ..pipeline import Pipeline
    from ..prompts import Split

EXAMPLES = """\
examples:
  %(prog)s "a red circle moves to the right"
  %(prog)s "it turns" --image ball.png --output ball.mp4
  %(prog)s "it stops" --extend ball.mp4 --overlap 5 --output longer.mp4
  %(prog)s "a fox in the snow" --model Kandinsky-5.0-T2V-Lite-sft-5s-Diffusers --device cuda
  %(prog)s "a fox in the snow" --model kandinsky5lite_t2v_sft_5s.safetensors \\
      --vae hunyuan_video_vae.safetensors --text-encoder folder_with_text_encoders
  %(prog)s --prompts prompts.txt --output clips
"""


@dataclass(frozen=True)
class Generate:
    """A job, or what all jobs of a list share."""

    job: Job
    """Without a prompt where there is a list."""
    prompts: Path | None
    """The list."""
    split: Split
    """What separates its prompts."""


def add_generate(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Describe the command."""
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
    make.set_defaults(read=read_generate, run=run_generate)


def read_generate(args: argparse.Namespace) -> Generate:
    """Read what a command line asks for.

    Raises:
        ValueError: Not one of prompt and list is given, or a number is out of its range.
    """
    if (args.prompt is None) == (args.prompts is None):
        raise ValueError(
            "prompt: give one, or a list of them with --prompts FILE"
            if args.prompt is None
            else "--prompts is given beside a prompt: give one of the two"
        )
    return Generate(read_job(args), args.prompts, args.split)


def run_generate(asked: Generate) -> None:
    """Make one video or image, or one for every prompt of a list.

    Whatever can be refused without encoding a text is refused at the start.
    """
    from ..generate import prepare, settle
    from ..pipeline import identify_model
    from .jobs import checksum, list_jobs, naming, result_metadata, unfinished

    info = identify_model(asked.job.model.model)
    jobs = [with_task(asked.job, info)]
    if asked.prompts is not None:
        jobs = unfinished(list_jobs(jobs[0], asked.prompts, asked.split))
    if not jobs:
        return
    jobs = [check_outputs(job) for job in jobs]
    given = asked.job.given
    shown = read_shown(given)
    jobs = [with_shown(job, shown) for job in jobs]
    caches = make_magcaches(jobs, info)
    pipeline = load_parts(asked.job.model, info)
    for match in pipeline.loras:
        note(match.note)
    settled = []
    for job in jobs:
        with naming(job):
            settled.append(settle(pipeline, job.request))
    fps = settled[0].settings.fps
    if shown.clip is not None and shown.clip.fps != fps:
        note(
            f"{given.extend} has {shown.clip.fps:g} frames a second, and the result plays at {fps}"
        )
    sha256 = ""
    for number, (job, fixed, cache) in enumerate(zip(jobs, settled, caches, strict=True), 1):
        request = job.request
        if asked.prompts is not None:
            sys.stderr.write(f"[{number}/{len(jobs)}] {request.prompt}\n")
        with naming(job):
            if job.expansion.is_wanted:
                request = replace(
                    request,
                    prompt=write_out(
                        request.prompt,
                        pipeline.text_encoder,
                        job.expansion,
                        task=fixed.task,
                        image=shown.start,
                        seed=request.seed,
                    ),
                )
            _mention_unknown_words(pipeline, request.prompt)
            prepared = prepare(pipeline, request, fixed)
            result = sample_with_progress(pipeline, prepared, cache)
        sha256 = sha256 or checksum(info)
        metadata = result_metadata(job, request.prompt, result, task=fixed.task, sha256=sha256)
        if cache is not None:
            metadata["magcache"] = f"{cache.threshold:g}, {cache.ratios.source}"
        write_result(result, request.before, job.outputs, metadata)
        if cache is not None:
            sys.stderr.write(cache.summary() + "\n")


def _mention_unknown_words(pipeline: Pipeline, prompt: str) -> None:
    from ..text import NanoTextEncoder

    if isinstance(pipeline.text_encoder, NanoTextEncoder):
        words = pipeline.text_encoder.unknown_words(prompt)
        if words:
            note(f"this model never learnt: {', '.join(words)}")
