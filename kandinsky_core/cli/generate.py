"""`generate`: one video or image, or one for every prompt of a list."""

from __future__ import annotations

import argparse
import sys
from dataclasses import replace
from typing import TYPE_CHECKING

from .expand import expand_with
from .magcache import make_magcaches
from .output import check_outputs, note, sample_with_progress, suffix_of, write_result
from .request import choose_task, load_parts, make_request, read_given

if TYPE_CHECKING:
    from ..pipeline import Pipeline

GIB = 2**30


def run_generate(args: argparse.Namespace) -> None:
    """Make one video or image, or one for every prompt of a list.

    Whatever can be refused is refused at the start.
    """
    from ..generate import prepare, settle
    from ..pipeline import identify_model
    from .jobs import checksum, list_jobs, naming, result_metadata, unfinished

    info = identify_model(args.model)
    task = choose_task(args, info)
    jobs = unfinished(list_jobs(args, suffix_of(task)))
    if not jobs:
        return
    for job in jobs:
        job.output = check_outputs(job.output, job.sheet, task)
    if args.vae_memory is not None and not args.vae_memory > 0:
        raise ValueError(f"--vae-memory is {args.vae_memory}: give GiB, more than 0")
    given = read_given(args)
    requests = [make_request(job, task, given) for job in jobs]
    caches = make_magcaches(jobs, requests, info, task)
    pipeline = load_parts(args, info)
    for match in pipeline.loras:
        note(match.note)
    settled = []
    for job, request in zip(jobs, requests, strict=True):
        with naming(job):
            settled.append(settle(pipeline, request))
    fps = settled[0].settings.fps
    if given.clip is not None and given.clip.fps != fps:
        note(f"{args.extend} has {given.clip.fps:g} frames a second, and the result plays at {fps}")
    budget = None if args.vae_memory is None else int(args.vae_memory * GIB)
    sha256 = ""
    work = zip(jobs, requests, settled, caches, strict=True)
    for number, (job, request, fixed, cache) in enumerate(work, 1):
        if args.prompts is not None:
            sys.stderr.write(f"[{number}/{len(jobs)}] {job.prompt}\n")
        with naming(job):
            if args.expand:
                expanded = expand_with(job, pipeline.text_encoder, task, given.start)
                request = replace(request, prompt=expanded)
            _mention_unknown_words(pipeline, request.prompt)
            prepared = prepare(pipeline, request, fixed)
            result = sample_with_progress(pipeline, prepared, cache)
        sha256 = sha256 or checksum(info)
        metadata = result_metadata(job, request.prompt, result, task=task, sha256=sha256)
        if cache is not None:
            metadata["magcache"] = f"{cache.threshold:g}, {cache.ratios.source}"
        write_result(result, request.before, job.output, job.sheet, metadata, budget)
        if cache is not None:
            sys.stderr.write(cache.summary() + "\n")


def _mention_unknown_words(pipeline: Pipeline, prompt: str) -> None:
    from ..text import NanoTextEncoder

    if isinstance(pipeline.text_encoder, NanoTextEncoder):
        words = pipeline.text_encoder.unknown_words(prompt)
        if words:
            note(f"this model never learnt: {', '.join(words)}")
