"""MagCache on the command line: the command `calibrate`, and what `generate --magcache` uses."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import import_extra
from .options import add_attention, add_model, add_prompt, add_sampling
from .output import note, sample_with_progress, say
from .request import choose_task, load_parts, make_request, read_given

if TYPE_CHECKING:
    from ..caching import MagCache, MagRatios
    from ..checkpoint import CheckpointInfo
    from ..family.settings import SamplingSettings, Task
    from ..generate import GenerateRequest

CALIBRATE = """\
Measure how much each step of a checkpoint resembles the one before it, which MagCache needs where
no such ratios were published. One run in full measures them for any prompt and number of steps.
"""


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
    measure.set_defaults(run=run_calibrate)


def run_calibrate(args: argparse.Namespace) -> None:
    """Sample once in full and write the ratios between its steps."""
    from ..caching import Calibration, describe_release, save_ratios
    from ..files import check_writable
    from ..generate import prepare, settle
    from ..pipeline import identify_model

    if args.unguided_last_step:
        raise ValueError(
            "--unguided-last-step leaves a step of the negative prompt unmeasured: calibrate "
            "without it; the ratios serve runs with it too"
        )
    info = identify_model(args.model)
    task = choose_task(args, info)
    if args.output.suffix.lower() != ".json":
        raise ValueError(f"--output {args.output} cannot hold ratios: give a .json file")
    check_writable(args.output)
    import_extra("tqdm", "video")
    calibration, request = Calibration(), make_request(args, task, read_given(args))
    pipeline = load_parts(args, info)
    prepared = prepare(pipeline, request, settle(pipeline, request))
    result = sample_with_progress(pipeline, prepared, calibration)
    assert info.release is not None, "identify_model finds transformers only"
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
        "attention": result.settings.attention,
        "prompt": args.prompt,
        "seed": args.seed,
    }
    save_ratios(args.output, calibration.ratios(release), measured_on)
    say(str(args.output))
    sys.stderr.write(f"use them with: generate --magcache --magcache-ratios {args.output}\n")


def make_magcaches(
    jobs: Sequence[argparse.Namespace],
    requests: Iterable[GenerateRequest],
    info: CheckpointInfo,
    task: Task,
) -> list[MagCache | None]:
    """Return the MagCache that each job asks for, with a note where its ratios may not fit.

    Args:
        jobs: Options of `generate`.
        requests: What each is to make.
        info: The model.
        task: What is made from what.

    Returns:
        One per job, or None; the same note is made once.

    Raises:
        ValueError: There are no ratios, or a number is out of its range.
    """
    made = [_make_magcache(*each, info, task) for each in zip(jobs, requests, strict=True)]
    for text in dict.fromkeys(text for _, text in made):
        note(text)
    return [cache for cache, _ in made]


def _make_magcache(
    args: argparse.Namespace, request: GenerateRequest, info: CheckpointInfo, task: Task
) -> tuple[MagCache | None, str]:
    from ..caching import MagCache
    from ..family.typed import row_of_class

    if args.magcache is None and args.magcache_ratios is None:
        return None, ""
    assert info.settings is not None, "identify_model finds transformers only"
    height, width = request.asked_size
    row = row_of_class(info.settings, request.size_class, height, width)
    ratios, text = _find(args.magcache_ratios, info, task, row)
    if isinstance(args.magcache, float):
        return MagCache(ratios, threshold=args.magcache), text
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
