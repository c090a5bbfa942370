"""Whether NABLA costs quality: the same questions and seeds, dense and sparse (`python -m`).

The nano family's largest clip is 7 x 16 x 16 tokens; with tiles of 1 x 2 x 2 it has 8 x 8 tiles a
latent frame, as a 1024 x 1024 video of the large models has with tiles of 1 x 8 x 8. Every variant
answers the same held-out captions from the same noise. The oracle judges attributes, and a small
classifier's features give a Frechet distance to rendered clips of the same captions. Answers are
appended to a file as they come, so a stopped study goes on.
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..attention import MapReport, Nabla
from ..distributed import Group, launch
from ..flow import VisualCondition, make_noise, sample, timesteps
from ..guided_model import GuidedModel
from ..models import to_vae_space
from ..nano import nano_path
from ..pipeline import Pipeline
from ..shapes import VideoShape
from ..video import to_uint8
from .evaluate import PARTS, TEST_SETS, checksum, load, read_answers
from .evaluation_report import wilson
from .features import frechet_distance, prepare, train_features
from .world import HeldOut, correct, measure, render

logger = logging.getLogger(__name__)

SIZE, NUM_FRAMES = 256, 25
TILE = (1, 2, 2)
WINDOW = (3, 3, 3)
SETS = ("t2v", "two_objects")
ROWS = ("color", "shape", "motion", "all", "count")


@dataclass(frozen=True)
class Variant:
    """One way to attend."""

    name: str
    sparsity: float
    """Wanted share of pairs of tiles that are left out; 0 is dense."""
    window: tuple[int, int, int] | None = WINDOW
    """Sliding window in tiles."""
    coarse: bool = True
    """Whether NABLA chooses blocks; False leaves the window alone."""


VARIANTS = (
    Variant("dense", 0.0),
    Variant("NABLA + STA, 80 %", 0.8),
    Variant("NABLA + STA, 90 %", 0.9),
    Variant("NABLA alone, 80 %", 0.8, window=None),
    Variant("NABLA alone, 90 %", 0.9, window=None),
    Variant("STA alone, 80 %", 0.8, window=(7, 5, 5), coarse=False),
    Variant("STA alone, 90 %", 0.9, window=(5, 3, 3), coarse=False),
)


@torch.no_grad()
def make_clip(
    pipeline: Pipeline, question: HeldOut, nabla: Nabla | None
) -> tuple[np.ndarray, float]:
    """One clip at the largest size.

    Returns:
        uint8 (F, H, W, 3), and the density of its maps, 1 for dense.
    """
    settings = pipeline.settings.for_size(SIZE, SIZE)
    geometry = settings.geometry(pipeline.geometry)
    channels = pipeline.transformer.config.latent_channels
    shape = VideoShape(NUM_FRAMES, SIZE, SIZE).latent_shape(channels, geometry=geometry)
    densities: list[float] = []

    def note(report: MapReport) -> None:
        densities.append(float(report.density.mean()))

    encode = pipeline.text_encoder.encode
    model = GuidedModel(
        pipeline.transformer,
        encode([question.caption], task="t2v"),
        encode([settings.negative_prompt], task="t2v"),
        settings.guidance_scale,
        VisualCondition(),
        settings.rope_scale,
        pipeline.attend,
        nabla=None if nabla is None else replace(nabla, observe=note),
    )
    latents = make_noise(shape, question.seed)
    for step in sample(model, latents, timesteps(settings.num_steps, settings.shift)):
        latents = step.latents
    frames = pipeline.vae.decode(to_vae_space(latents, pipeline.vae.config))
    return to_uint8(frames), float(np.mean(densities)) if densities else 1.0


def find_nabla(
    variant: Variant, measure_density: Callable[[Nabla], float], *, rounds: int = 6
) -> Nabla | None:
    """The P that gives a variant its sparsity, by bisection on a measured density."""
    if variant.sparsity == 0:
        return None
    nabla = Nabla(0.0, TILE, variant.window)
    if not variant.coarse:
        return nabla
    low, high = 0.0, 1.0
    for _ in range(rounds):
        nabla = replace(nabla, cdf_threshold=(low + high) / 2)
        if measure_density(nabla) > 1 - variant.sparsity:
            high = nabla.cdf_threshold
        else:
            low = nabla.cdf_threshold
    return replace(nabla, cdf_threshold=low)


def work(group: Group, folder: Path, key: str, paths: dict[str, Path], count: int) -> None:
    """Answers this process's share of what is still open."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    pipeline = load(paths, {}, larger=True)
    features = train_features()
    folder.mkdir(parents=True, exist_ok=True)
    done = read_answers(folder, key)
    group.barrier()
    probe = TEST_SETS["t2v"].questions(1)[0]
    with (folder / f"{key}-{group.rank}.jsonl").open("a", encoding="utf-8") as file:
        for variant in VARIANTS:
            nabla = find_nabla(variant, lambda nabla: make_clip(pipeline, probe, nabla)[1])
            for name in SETS:
                questions = list(enumerate(TEST_SETS[name].questions(count)))
                for index, question in questions[group.rank :: group.size]:
                    place = f"{variant.name}/{name}"
                    if (place, index) in done:
                        continue
                    frames, density = make_clip(pipeline, question, nabla)
                    rendered = render(question.scene, SIZE, NUM_FRAMES)
                    row = {
                        "set": place,
                        "index": index,
                        "right": {
                            k: bool(v) for k, v in correct(measure(frames), question.scene).items()
                        },
                        "density": round(density, 4),
                        "p": None if nabla is None else round(nabla.cdf_threshold, 4),
                        "features": _rounded(features(prepare(frames))[0]),
                        "rendered": _rounded(features(prepare(rendered))[0]),
                    }
                    file.write(json.dumps(row) + "\n")
                    file.flush()
                    if group.is_main:
                        logger.info("%s %d: %s", place, index, row["right"])


def _rounded(values: torch.Tensor) -> list[float]:
    return [round(value, 4) for value in values.tolist()]


def make_report(rows: dict[tuple[str, int], dict[str, Any]], key: str) -> str:
    """Markdown of everything that was answered."""
    lines = [
        "# Does NABLA cost quality?",
        "",
        "Made by `python -m kandinsky_core.training.sparsity_study --report",
        "docs/nabla_quality.md`. Proven on nano alone:",
        f"weights `{key}`, {SIZE} x {SIZE}, {NUM_FRAMES} frames, tiles of {TILE} tokens",
        "(8 x 8 a latent frame), windows in tiles as stated. The bundled weights were trained",
        "dense. Same captions and noise for every row; 95 % Wilson intervals; the Frechet distance",
        "is to rendered clips of the same captions, in features of a classifier trained on this",
        "world.",
    ]
    for name in SETS:
        head = " | ".join(ROWS)
        lines += [
            "",
            f"## {'One object' if name == 't2v' else 'Two objects'}",
            "",
            f"| attention | window | P | density | clips | {head} | Frechet |",
            "|" + "---|" * (6 + len(ROWS)),
        ]
        for variant in VARIANTS:
            chosen = [row for (place, _), row in rows.items() if place == f"{variant.name}/{name}"]
            if chosen:
                lines.append(_line(variant, chosen))
    return "\n".join(lines) + "\n"


def _line(variant: Variant, rows: Sequence[dict[str, Any]]) -> str:
    cells = []
    for what in ROWS:
        hits = sum(row["right"][what] for row in rows)
        low, high = wilson(hits, len(rows))
        cells.append(f"{hits / len(rows):.0%} ({low:.0%} to {high:.0%})")
    made, rendered = (np.array([row[each] for row in rows]) for each in ("features", "rendered"))
    distance = frechet_distance(made, rendered) if len(rows) > 1 else float("nan")
    density = np.mean([row["density"] for row in rows])
    window = (
        ""
        if variant.window is None or variant.sparsity == 0
        else "x".join(map(str, variant.window))
    )
    p = "" if rows[0]["p"] is None or not variant.coarse else f"{rows[0]['p']:.3f}"
    return (
        f"| {variant.name} | {window} | {p} | {density:.1%} | {len(rows)} | "
        + " | ".join(cells)
        + f" | {distance:.2f} |"
    )


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--count", type=int, default=60, help="questions of each set")
    parser.add_argument("--answers", type=Path, default=Path("runs/sparsity"))
    parser.add_argument("--report", type=Path, help="Markdown file to write")
    parser.add_argument("--processes", type=int, default=2)
    args = parser.parse_args(arguments)
    paths = {part: nano_path(part) for part in PARTS}
    key = checksum(paths, {})
    launch(work, args.processes, args.answers, key, paths, args.count, threads=1)
    report = make_report(read_answers(args.answers, key), key)
    if args.report is not None:
        args.report.write_text(report, encoding="utf-8")
    sys.stdout.write(report)


if __name__ == "__main__":
    main()
