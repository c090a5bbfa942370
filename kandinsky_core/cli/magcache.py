"""MagCache on the command line: the command `calibrate`, and what `generate --magcache` uses."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import import_extra
from .job import Given, Job
from .options import (
    add_attention,
    add_model,
    add_prompt,
    add_sampling,
    read,
    read_model,
    read_request,
)
from .output import note, sample_with_progress, say
from .request import load_parts, read_shown, with_shown, with_task

if TYPE_CHECKING:
    from ..caching import MagCache, MagRatios
    from ..checkpoint import CheckpointInfo
    from ..family.settings import SamplingSettings, Task

CALIBRATE = """\
Measure how much each step of a checkpoint resembles the one before it, which MagCache needs where
no such ratios were published. One run in full measures them for any prompt and number of steps.
"""


@dataclass(frozen=True)
class Calibrate:
    """A run to measure."""

    job: Job
    """The run."""
    output: Path
    """Where its ratios go."""


def add_calibrate(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Describe the command `calibrate`."""
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
    add_attention(measure)
    measure.set_defaults(read=read_calibrate, run=run_calibrate)


def read_calibrate(args: argparse.Namespace) -> Calibrate:
    """Read what a command line asks for.

    Raises:
        ValueError: A number is out of its range, or the run would not show all ratios.
    """
    if args.unguided_last_step:
        raise ValueError(
            "--unguided-last-step leaves a step of the negative prompt unmeasured: calibrate "
            "without it; the ratios serve runs with it too"
        )
    return Calibrate(Job(read_request(args), read_model(args), read(Given, args)), args.output)


def run_calibrate(asked: Calibrate) -> None:
    """Sample once in full and write the ratios between its steps."""
    from ..caching import Calibration, describe_release, save_ratios
    from ..files import check_writable
    from ..generate import prepare, settle
    from ..pipeline import identify_model

    info = identify_model(asked.job.model.model)
    job, output = with_task(asked.job, info), asked.output
    if output.suffix.lower() != ".json":
        raise ValueError(f"--output {output} cannot hold ratios: give a .json file")
    check_writable(output)
    import_extra("tqdm", "video")
    calibration, request = Calibration(), with_shown(job, read_shown(job.given)).request
    pipeline = load_parts(job.model, info)
    prepared = prepare(pipeline, request, settle(pipeline, request))
    result = sample_with_progress(pipeline, prepared, calibration)
    assert info.release is not None, "identify_model finds transformers only"
    release = describe_release(info.release)
    measured_on = {
        "release": release,
        "model": job.model.model,
        "task": request.task,
        "size": list(result.shape.size),
        "frames": result.shape.num_frames,
        "steps": result.settings.num_steps,
        "cfg": result.settings.guidance_scale,
        "shift": result.settings.shift,
        "attention": result.settings.attention,
        "prompt": request.prompt,
        "seed": request.seed,
    }
    save_ratios(output, calibration.ratios(release), measured_on)
    say(str(output))
    sys.stderr.write(f"use them with: generate --magcache --magcache-ratios {output}\n")


def make_magcaches(jobs: Sequence[Job], info: CheckpointInfo) -> list[MagCache | None]:
    """Return the MagCache that each job asks for, with a note where its ratios may not fit.

    Args:
        jobs: With their tasks and what is given.
        info: The model.

    Returns:
        One per job, or None; the same note is made once.

    Raises:
        ValueError: There are no ratios, or a number is out of its range.
    """
    made = [_make_magcache(job, info) for job in jobs]
    for text in dict.fromkeys(text for _, text in made):
        note(text)
    return [cache for cache, _ in made]


def _make_magcache(job: Job, info: CheckpointInfo) -> tuple[MagCache | None, str]:
    from ..caching import MagCache
    from ..family.typed import row_of_class

    caching, request = job.caching, job.request
    if not caching.is_wanted:
        return None, ""
    assert info.settings is not None, "identify_model finds transformers only"
    assert request.task is not None, "with_task comes first"
    row = row_of_class(info.settings, request.size_class, *request.asked_size)
    ratios, text = _find(caching.ratios, info, request.task, row)
    if caching.threshold is not None:
        return MagCache(ratios, threshold=caching.threshold), text
    return MagCache(ratios), text


def _find(
    path: Path | None, info: CheckpointInfo, task: Task, row: SamplingSettings
) -> tuple[MagRatios, str]:
    """Return the ratios, and what about them may not fit."""
    from ..caching import describe_mismatch, describe_release, find_ratios, load_ratios

    assert info.release is not None, "identify_model finds transformers only"
    assert info.settings is not None, "identify_model finds transformers only"
    if path is not None:
        ratios, measured_on = load_ratios(path)
        mismatch = describe_mismatch(measured_on, info.release, info.settings, row=row, task=task)
        return ratios, mismatch and f"{ratios.source} {mismatch}"
    assumed = [
        fact
        for fact in ("task", "seconds", "stage")
        if getattr(info, fact) is not None and info.sources.get(fact) == "default"
    ]
    text = ""
    if assumed:
        release, guess = describe_release(info.release), ", ".join(assumed)
        text = f"MagCache takes this model for {release} (a guess: {guess})"
    return find_ratios(info.release, row), text
