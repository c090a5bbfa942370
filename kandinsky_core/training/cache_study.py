"""What MagCache saves on nano and what it costs; run with `python -m`.

One run in full calibrates the ratios. Then every question is answered in full and at several
thresholds, in turn, from the same noise: time and quality come from the same clips, and whatever
else the machine does meets all thresholds. Answers are appended to a file as they come, so a
stopped study goes on.
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..caching import Calibration, MagCache, MagRatios
from ..generate import GenerateRequest, generate
from ..nano import nano_path
from ..pipeline import Pipeline
from .evaluate import PARTS, TEST_SETS, checksum, load, read_answers
from .evaluation_report import wilson
from .world import HeldOut, correct, measure

logger = logging.getLogger(__name__)

THRESHOLDS = (0.0, 0.03, 0.06, 0.12, 0.24)
"""0 runs in full; 0.12 is the reference's."""
ROWS = ("color", "shape", "motion", "all")


def calibrate(pipeline: Pipeline) -> MagRatios:
    """Ratios of the model at its default size, from one run in full."""
    calibration = Calibration()
    generate(pipeline, GenerateRequest("a red circle moves right"), cache=calibration)
    return calibration.ratios("nano, one run in full")


def answer(
    pipeline: Pipeline, question: HeldOut, ratios: MagRatios, threshold: float
) -> tuple[dict[str, Any], Tensor]:
    """One clip at one threshold: a row, and its latents."""
    cache = MagCache(ratios, threshold=threshold) if threshold else None
    began = time.perf_counter()
    result = generate(pipeline, GenerateRequest(question.caption, seed=question.seed), cache=cache)
    seconds = time.perf_counter() - began
    frames = np.stack(list(result.frames()))
    counts = [] if cache is None else list(cache.counts.values())
    row = {
        "right": {k: bool(v) for k, v in correct(measure(frames), question.scene).items()},
        "seconds": round(seconds, 3),
        "skipped": sum(each.skipped for each in counts),
        "calls": sum(each.calls for each in counts) or 2 * pipeline.settings.num_steps,
    }
    return row, result.latents


def study(pipeline: Pipeline, path: Path, done: dict[tuple[str, int], Any], count: int) -> None:
    """Answers what is still open, every question at all thresholds in turn."""
    ratios = calibrate(pipeline)
    with path.open("a", encoding="utf-8") as file:
        for index, question in enumerate(TEST_SETS["t2v"].questions(count)):
            if all((f"{threshold:g}", index) in done for threshold in THRESHOLDS):
                continue
            full: Tensor | None = None
            for threshold in THRESHOLDS:
                row, latents = answer(pipeline, question, ratios, threshold)
                full = latents if full is None else full
                error = ((latents - full).norm() / full.norm()).item()
                row |= {"set": f"{threshold:g}", "index": index, "error": round(error, 5)}
                file.write(json.dumps(row) + "\n")
            file.flush()
            logger.info("question %d", index)


def make_report(rows: dict[tuple[str, int], dict[str, Any]], key: str, pipeline: Pipeline) -> str:
    """Markdown of everything that was answered."""
    settings = pipeline.settings
    lines = [
        "# MagCache on nano: time against quality",
        "",
        "Made by `python -m kandinsky_core.training.cache_study --report",
        "docs/magcache_quality.md`.",
        f"Proven on nano alone: weights `{key}`, {settings.num_steps} steps with guidance, ratios",
        "calibrated in one run. Every question at every threshold in turn, from the same noise.",
        "Faster is the median over questions of the ratio of sampling times; error the relative",
        "distance of the final latents from the run in full; 95 % Wilson intervals.",
        "",
        "| threshold | clips | steps skipped | faster | quartiles | error | "
        + " | ".join(ROWS)
        + " |",
        "|" + "---|" * (6 + len(ROWS)),
    ]
    by_threshold = {
        threshold: {index: row for (name, index), row in rows.items() if name == f"{threshold:g}"}
        for threshold in THRESHOLDS
    }
    full = by_threshold[0.0]
    for threshold, chosen in by_threshold.items():
        if not chosen:
            continue
        ratios = [full[i]["seconds"] / row["seconds"] for i, row in chosen.items() if i in full]
        low, middle, high = np.percentile(ratios, [25, 50, 75])
        skipped = sum(r["skipped"] for r in chosen.values()) / sum(
            r["calls"] for r in chosen.values()
        )
        error = np.median([row["error"] for row in chosen.values()])
        cells = []
        for what in ROWS:
            hits = sum(row["right"][what] for row in chosen.values())
            least, most = wilson(hits, len(chosen))
            cells.append(f"{hits / len(chosen):.0%} ({least:.0%} to {most:.0%})")
        lines.append(
            f"| {f'{threshold:g}' if threshold else 'in full'} | {len(chosen)} | {skipped:.0%} | "
            f"{middle:.2f}x | {low:.2f} to {high:.2f} | {error:.3f} | " + " | ".join(cells) + " |"
        )
    return "\n".join(lines) + "\n"


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--count", type=int, default=60, help="questions")
    parser.add_argument("--answers", type=Path, default=Path("runs/magcache"))
    parser.add_argument("--report", type=Path, help="Markdown file to write")
    args = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    torch.set_grad_enabled(False)
    paths = {part: nano_path(part) for part in PARTS}
    key, pipeline = checksum(paths, {}), load(paths, {})
    args.answers.mkdir(parents=True, exist_ok=True)
    path = args.answers / f"{key}-0.jsonl"
    study(pipeline, path, read_answers(args.answers, key), args.count)
    report = make_report(read_answers(args.answers, key), key, pipeline)
    if args.report is not None:
        args.report.write_text(report, encoding="utf-8")
    sys.stdout.write(report)


if __name__ == "__main__":
    main()
