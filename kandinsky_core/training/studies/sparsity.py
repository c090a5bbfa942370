"""Whether NABLA costs quality: the same questions and seeds, dense and sparse (`python -m`).

The nano family's largest clip is 7 x 16 x 16 tokens; with tiles of 1 x 2 x 2 it has 8 x 8 tiles a
latent frame, as a 1024 x 1024 video of the large models has with tiles of 1 x 8 x 8. Every variant
answers the same held-out captions from the same noise. The oracle judges attributes, and a small
classifier's features give a Frechet distance to rendered clips of the same captions. Every
question is answered by all variants in turn, and answers are appended to a file as they come: a
stopped study is balanced, and goes on.
"""

from __future__ import annotations

import argparse
import logging
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from ...attention import MapReport, Nabla
from ...family.shapes import VideoShape
from ...files import write_text
from ...generate import GenerateRequest, generate
from ...nano import nano_path
from ...pipeline import Pipeline
from ..distributed import Group, launch
from ..world import HeldOut, correct, measure, render
from .answers import Answers, Place, Row, checksum
from .evaluate import PARTS, TEST_SETS, load
from .features import NUM_FEATURES, prepare, train_features
from .sparsity_levels import LevelCounter, find_p, find_window
from .sparsity_report import make_report

logger = logging.getLogger(__name__)

SIZE, NUM_FRAMES = 256, 25
TILE = (1, 2, 2)
WINDOW = (3, 3, 3)
"""Sliding window beside NABLA, in tiles."""
SETS = ("t2v", "two_objects")
NUM_PROBES = 3
"""Questions of each set whose dense runs say which P to take."""
MARGIN = 0.01
"""Sparsity that is aimed at beyond the wanted one: captions differ, and sparse runs from dense."""


@dataclass(frozen=True)
class Variant:
    """One way to attend."""

    name: str
    sparsity: float = 0.0
    """Least share of pairs of tiles to leave out; 0 is dense."""
    coarse: bool = True
    """Whether NABLA chooses blocks; False leaves the window alone."""
    window: bool = True
    """Whether there is a sliding window."""


VARIANTS = (
    Variant("dense"),
    *(
        Variant(f"{name} {sparsity}", sparsity, coarse, window)
        for name, coarse, window in (
            ("NABLA + STA", True, True),
            ("NABLA alone", True, False),
            ("STA alone", False, True),
        )
        for sparsity in (0.8, 0.9)
    ),
)


def make_clip(
    pipeline: Pipeline, question: HeldOut, nabla: Nabla | None
) -> tuple[np.ndarray, float]:
    """Make one clip at the largest size.

    Returns:
        uint8 (F, H, W, 3), and the density of its maps, 1 for dense.
    """
    densities: list[float] = []

    def note(report: MapReport) -> None:
        densities.append(float(report.density.mean()))

    request = GenerateRequest(
        question.caption, height=SIZE, width=SIZE, num_frames=NUM_FRAMES, seed=question.seed
    )
    observed = None if nabla is None else replace(nabla, observe=note)
    frames = np.stack(list(generate(pipeline, request, nabla=observed).frames()))
    return frames, float(np.mean(densities)) if densities else 1.0


def count_levels(group: Group, pipeline: Pipeline) -> torch.Tensor:
    """Return the counts of `LevelCounter` with the study's window, over probes shared among
    processes."""
    counter = LevelCounter(tile_thw=TILE, sta_window_thw=None, window_thw=WINDOW)
    probes = [q for name in SETS for q in TEST_SETS[name].questions(NUM_PROBES)]
    for question in probes[group.rank :: group.size]:
        make_clip(pipeline, question, counter)
    group.sum_([counter.counts])
    return counter.counts


def choose_nabla(
    variant: Variant, counts: torch.Tensor, grid_thw: tuple[int, int, int]
) -> Nabla | None:
    """Return the settings that give a variant its sparsity.

    Args:
        variant: What is wanted.
        counts: Of `count_levels`.
        grid_thw: Tiles per axis.

    Returns:
        The settings; None for dense.
    """
    if not variant.sparsity:
        return None
    if not variant.coarse:
        return Nabla(0.0, TILE, find_window(grid_thw, variant.sparsity))
    p = find_p(counts[int(variant.window)], variant.sparsity + MARGIN)
    return Nabla(p, TILE, WINDOW if variant.window else None)


def open_questions(
    group: Group, done: dict[Place, Row], count: int
) -> Iterator[tuple[str, int, HeldOut, list[Variant]]]:
    """Yield this process's share of the questions, those of all sets in turn, and who has to
    answer."""
    questions = {name: TEST_SETS[name].questions(count) for name in SETS}
    for index in range(group.rank, count, group.size):
        for name in SETS:
            waiting = [v for v in VARIANTS if (f"{v.name}/{name}", index) not in done]
            if index < len(questions[name]) and waiting:
                yield name, index, questions[name][index], waiting


def work(
    group: Group, answers: Answers, paths: dict[str, Path], count: int, minutes: float
) -> None:
    """Answer this process's share of what is still open; no new question after `minutes`."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    end = time.monotonic() + 60 * minutes
    pipeline = load(paths, {}, larger=True)
    features = train_features()
    counts = count_levels(group, pipeline)
    geometry = pipeline.settings.for_size(SIZE, SIZE).geometry(pipeline.geometry)
    latent = VideoShape(NUM_FRAMES, SIZE, SIZE).latent_shape(1, geometry=geometry)[-3:]
    patch = pipeline.transformer.config.patch_thw
    t, h, w = (n // (p * tile) for n, p, tile in zip(latent, patch, TILE, strict=True))
    nablas = {variant: choose_nabla(variant, counts, (t, h, w)) for variant in VARIANTS}
    with answers.go_on(group) as (done, add):
        for name, index, question, waiting in open_questions(group, done, count):
            if time.monotonic() > end:
                break
            rendered = _rounded(features(prepare(render(question.scene, SIZE, NUM_FRAMES)))[0])
            for variant in waiting:
                nabla = nablas[variant]
                frames, density = make_clip(pipeline, question, nabla)
                right = correct(measure(frames), question.scene)
                row = {
                    "right": {what: bool(value) for what, value in right.items()},
                    "density": round(density, 4),
                    "p": nabla.cdf_threshold if nabla and variant.coarse else None,
                    "window": nabla.sta_window_thw if nabla else None,
                    "features": _rounded(features(prepare(frames))[0]),
                    "rendered": rendered,
                }
                add(f"{variant.name}/{name}", index, row)
            if group.is_main:
                logger.info("%s %d", name, index)


def _rounded(values: torch.Tensor) -> list[float]:
    return [round(value, 4) for value in values.tolist()]


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--count", type=int, default=60, help="questions of each set")
    parser.add_argument(
        "--minutes", type=float, default=float("inf"), help="start no question after so long"
    )
    parser.add_argument("--answers", type=Path, default=Path("runs/sparsity"))
    parser.add_argument("--report", type=Path, help="Markdown file to write")
    parser.add_argument("--report-only", action="store_true", help="report what is answered so far")
    parser.add_argument("--processes", type=int, default=2)
    args = parser.parse_args(arguments)
    paths = {part: nano_path(part) for part in PARTS}
    key = checksum(paths, {"num_features": NUM_FEATURES, "margin": MARGIN})
    answers = Answers(args.answers, key)
    if not args.report_only:
        share = (answers, paths, args.count, args.minutes)
        launch(work, args.processes, *share, threads=1)
    how = (
        f"{SIZE} x {SIZE}, {NUM_FRAMES} frames, tiles of {TILE} tokens (8 x 8 a latent frame), "
        "windows in tiles as stated"
    )
    names = [variant.name for variant in VARIANTS]
    report = make_report(answers.read(), names, SETS, f"weights `{key}`, {how}")
    if args.report is not None:
        write_text(args.report, report)
    sys.stdout.write(report)


if __name__ == "__main__":
    main()
