"""Plans in words and tables, for a reader."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch

from ..family.settings import Task
from ..family.shapes import Size
from .costs import count_block_parameters
from .jobs import Request, make_job, shape_of
from .plan import (
    BOTH_PROMPTS,
    GIB,
    OFFLOADS,
    Job,
    Plan,
    Stage,
    best_plan,
    plan_job,
    sampling_bytes,
    shorter_that_fits,
    smaller_that_fits,
)

CARDS = (8, 12, 16, 24, 48, 80)
"""GB of memory that the report looks at."""
TAKEN = 1.0
"""GiB of a card that the driver, a display and the allocator's gaps are taken to need."""
UNBOUNDED = sys.maxsize
"""Bytes: all there are."""
MARKS = {
    "resident": "all at once",
    "components": "one at a time",
    "streamed": "streamed",
}
"""How the report names a way of offloading."""

INTRODUCTION = (
    "# Which model fits which memory",
    "",
    "Made by `python -m kandinsky_core plan --all --report docs/memory.md`. **A prediction, not",
    "a measurement**: the counts are held against real runs at small sizes only",
    "(`tests/core/test_plan.py`, within 15 %); no GPU was used. Of a card, 1 GB is left to the",
    "driver and a display. `python -m kandinsky_core plan --help` plans any other job.",
    "",
    "* **all at once**: text encoders, transformer and autoencoder stay on the card.",
    "* **one at a time**: each is there while it works, and in main memory otherwise.",
    "* **streamed**: of the one that works, blocks come and go (ComfyUI's partial loading); the",
    "  more of them do, the slower it is.",
    "* **no**: a stage does not fit even so.",
    "",
    "Prompts of guidance run one after the other where both do not fit together, and the",
    "autoencoder works in tiles of the size that fits. It is in bf16; the column *weights* is",
    "about the transformer and the text encoders.",
    "",
    "In brackets: GiB of main memory that the job then needs beside the system and Python, for the",
    "weights that wait there and, after the decode, for the frames in fp32 (*Decode to Video* does",
    "without those). Weights that are used in the dtype of their file are read through a memory",
    "map, so with less main memory they are read from disk again and again; those that are",
    "converted or unpacked while they are loaded must fit, or the system swaps.",
    "",
)
STAGES = (
    "",
    "## What each stage takes",
    "",
    "In GiB: weights of the model that works, and after the plus everything else at the peak. VAE",
    "decode: from the smallest tiles to one piece, which has no seams. *Least* is the stage that",
    "needs most where blocks are streamed and tiles are smallest. *MagCache* is what it adds to",
    "sampling: the residuals of both prompts, and the blocks' input. *Main memory*: with one model",
    "at a time.",
    "",
)


def _request(model: str, task: Task, size: Size, num_frames: int) -> Request:
    height, width = size
    return Request(model, task=task, height=height, width=width, num_frames=num_frames)


FAMILY: tuple[tuple[str, Request], ...] = (
    ("Lite 5 s", _request("video_lite", "t2v", (512, 768), 121)),
    ("Lite 5 s, image to video", _request("video_lite", "i2v", (512, 768), 121)),
    ("Lite 10 s, NABLA", _request("video_lite", "t2v", (512, 768), 241)),
    ("Pro 5 s", _request("video_pro", "t2v", (512, 768), 121)),
    ("Pro 10 s, NABLA", _request("video_pro", "t2v", (512, 768), 241)),
    ("Pro 5 s HD, NABLA", _request("video_pro", "t2v", (768, 1280), 121)),
    ("Pro 10 s HD, NABLA", _request("video_pro", "t2v", (768, 1280), 241)),
    ("Image", _request("image_lite", "t2i", (1024, 1024), 1)),
    ("Image editing", _request("image_edit", "i2i", (1024, 1024), 1)),
)
"""Jobs of the report: name, and what is asked for."""
PRECISIONS: dict[str, dict[str, Any]] = {
    "bf16": {"dtype": torch.bfloat16, "text_dtype": torch.bfloat16},
    "fp8": {"dtype": torch.float8_e4m3fn, "text_dtype": torch.float8_e4m3fn},
    "GGUF Q4_K": {"bits_per_weight": 4.5},
}
"""Weights of the transformer and of the text encoders, as requests have them."""


def describe(
    job: Job,
    memory: int | None = None,
    sizes: Sequence[Size] = (),
    main: int | None = None,
) -> str:
    """Return a job's stages as a table, and what fits.

    Args:
        job: What is to be made.
        memory: Bytes that are free; None leaves the verdict out.
        sizes: Latent cells (h, w) to suggest where the job does not fit.
        main: Bytes of main memory that are free, if that is known.

    Returns:
        Lines for a fixed-width font.
    """
    plans = [plan_job(job, offload) for offload in OFFLOADS]
    fitting = None if memory is None else best_plan(job, memory)
    if fitting is not None:
        plans = [plan.with_tiles(max(memory or 0, plan.needed)) for plan in plans]
    chosen = plans[-1] if fitting is None else plans[OFFLOADS.index(fitting.offload)]
    lines = [_headline(job), "", _row("GiB", "weights", "tensors", "libraries", *OFFLOADS)]
    for number, stage in enumerate(chosen.stages):
        cells = [stage.weights, stage.tensors, stage.library]
        cells += [plan.peak(plan.stages[number]) for plan in plans]
        lines.append(_row(stage.name, *(f"{cell / GIB:.2f}" for cell in cells)))
    if job.device_type != "cpu":
        waiting = (plan.main_memory / GIB for plan in plans)
        lines.append(_row("main memory", "", "", "", *(f"{cell:.2f}" for cell in waiting)))
    if memory is not None:
        lines.append("")
        if fitting is not None:
            lines += [_tiles(stage) for stage in chosen.stages if stage.tiling is not None]
        lines.append(verdict(job, memory, sizes, main))
    return "\n".join(lines)


def fits(job: Job, memory: int, main: int | None = None) -> bool:
    """Return whether a job fits its device and, where it is known, main memory.

    Args:
        job: What is to be made.
        memory: Bytes that are free on the device.
        main: Bytes of main memory that are free.
    """
    plan = best_plan(job, memory)
    return plan is not None and (main is None or plan.main_memory <= main)


def verdict(job: Job, memory: int, sizes: Sequence[Size] = (), main: int | None = None) -> str:
    """Return one sentence: whether a job fits, how, and what bounds it.

    Args:
        job: What is to be made.
        memory: Bytes that are free.
        sizes: Latent cells (h, w) to suggest where it does not fit.
        main: Bytes of main memory that are free, if that is known.
    """
    plan = best_plan(job, memory)
    if plan is not None:
        device = f"fits {_gib(memory)} {_how(plan, memory)}"
        waiting = plan.main_memory
        if main is not None and waiting > main:
            return (
                f"does not fit main memory: {_gib(waiting)} of weights and frames wait there and "
                f"{_gib(main)} are free; the device {device}; use weights of fewer bits."
            )
        return f"{device}" + f"; {_gib(waiting)} wait in main memory" * (waiting > 0) + "."
    least = plan_job(job, "streamed")
    sentence = (
        f"does not fit {_gib(memory)}: {least.bounding.name} needs "
        f"{_gib(least.needed)} even with blocks streamed"
    )
    smaller = (shorter_that_fits(job, memory), smaller_that_fits(job, memory, sizes))
    shapes = [shape_of(plan.job) for plan in smaller if plan is not None]
    if not shapes:
        return f"{sentence}, and nothing smaller fits; use weights of fewer bits."
    words = (f"{each.num_frames} frames of {each.height}x{each.width}" for each in shapes)
    return f"{sentence}; what fits: {' or '.join(words)}."


def markdown() -> str:
    """Return the page docs/memory.md: what the family needs, and what fits which card."""
    return "\n".join([*INTRODUCTION, *_cards(), *STAGES, *_needs()]) + "\n"


def _cards() -> list[str]:
    lines = [
        "| | weights | " + " | ".join(f"{card} GB" for card in CARDS) + " |",
        "|---|---|" + "---|" * len(CARDS),
    ]
    for name, precision, job in _jobs():
        cells = []
        for card in CARDS:
            plan = best_plan(job, int((card - TAKEN) * GIB))
            cells.append(_cell(plan) if plan else "no")
        lines.append(f"| {name} | {precision} | {' | '.join(cells)} |")
    return lines


def _cell(plan: Plan) -> str:
    return f"{MARKS[plan.offload]} ({plan.main_memory / GIB:.0f})"


def _needs() -> list[str]:
    lines = [
        "| | weights | text encoding | sampling | both prompts at once | MagCache | VAE decode "
        "| least | main memory |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for name, precision, job in _jobs():
        plan = plan_job(job)
        shown = {stage.name: stage for stage in plan.stages}
        whole = plan.with_tiles(UNBOUNDED).stages[-1]
        cells = [
            f"{stage.weights / GIB:.1f} + {stage.work / GIB:.1f}"
            for stage in (shown["text encoding"], shown["sampling"], shown[BOTH_PROMPTS])
        ]
        decode = plan.stages[-1]
        cached = sampling_bytes(replace(job, cached=True), 1) - sampling_bytes(job, 1)
        cells.append(f"{cached / GIB:.1f}")
        cells.append(
            f"{decode.weights / GIB:.1f} + {decode.work / GIB:.1f} to {whole.work / GIB:.1f}"
        )
        least = plan_job(job, "streamed")
        cells.append(f"{least.needed / GIB:.1f}, {least.bounding.name}")
        cells.append(f"{plan.main_memory / GIB:.1f}")
        lines.append(f"| {name} | {precision} | {' | '.join(cells)} |")
    return lines


def _jobs() -> Iterator[tuple[str, str, Job]]:
    """Name, precision and job of each row."""
    for name, request in FAMILY:
        for precision, weights in PRECISIONS.items():
            job, _ = make_job(replace(request, **weights))
            yield name, precision, job


def _how(plan: Plan, memory: int) -> str:
    bound = plan.bounding
    text = {
        "resident": "with all models resident",
        "components": "with one model at a time",
        "streamed": "with blocks streamed",
    }[plan.offload]
    if plan.offload == "streamed":
        config = plan.job.config
        stage = next(stage for stage in plan.stages if stage.name == "sampling")
        block = plan.job.weight_bytes(count_block_parameters(config))
        stay = min(config.num_visual_blocks, 1 + max(0, memory - plan.peak(stage)) // block)
        text += f" ({stay} of {config.num_visual_blocks} of the transformer's stay)"
    return f"{text}; {bound.name} bounds it at {_gib(plan.needed)}"


def _headline(job: Job) -> str:
    shape = shape_of(job)
    attention = "dense attention" if job.nabla is None else f"NABLA at {job.density:.0%} density"
    frames = f", {shape.num_frames} frames" * (shape.num_frames > 1)
    weights, vae = (str(dtype).removeprefix("torch.") for dtype in (job.dtype, job.vae_dtype))
    if job.bits_per_weight is not None:
        weights = f"packed in {job.bits_per_weight:.1f} bits"
    also = " with guidance" * job.guided + " and MagCache" * job.cached
    return (
        f"{job.task}: {shape.height}x{shape.width}{frames}"
        + f", batch of {job.batch}" * (job.batch > 1)
        + f": {job.tokens:,} tokens, {attention}, weights {weights}, VAE {vae}; {job.num_steps} "
        f"steps{also}: {job.operations / 1e15:,.3g} PFLOP"
    )


def _gib(number: int) -> str:
    return f"{number / GIB:.{1 if number >= GIB else 2}f} GiB"


def _row(name: str, *cells: str) -> str:
    return f"{name:<32}" + "".join(f"{cell:>12}" for cell in cells)


def _tiles(stage: Stage) -> str:
    plan = stage.tiling
    assert plan is not None, stage
    if plan.num_tiles == 1:
        return f"{stage.name}: in one piece"
    tile = " x ".join(map(str, plan.largest_thw))
    return f"{stage.name}: {plan.num_tiles} tiles of up to {tile} latent cells (t, h, w)"
