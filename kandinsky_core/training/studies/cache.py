"""What MagCache saves on nano and what it costs; run with `python -m`.

One run in full calibrates the ratios. Then every question is answered in full and at several
thresholds, in turn, from the same noise: time and quality come from the same clips, and whatever
else the machine does meets all thresholds. Answers are appended to a file as they come, so a
stopped study goes on.
"""

from __future__ import annotations

import argparse
import logging
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ...caching import Branch, Calibration, MagCache, MagRatios, load_ratios, save_ratios
from ...caching.magcache import BRANCHES, MAX_SKIPS
from ...files import write_text
from ...generate import GenerateRequest, generate
from ...nano import nano_path
from ...pipeline import Pipeline
from ..world import HeldOut, correct, measure
from .answers import Answers, Place, Row, checksum
from .evaluate import PARTS, TEST_SETS, load
from .intervals import share_difference

logger = logging.getLogger(__name__)

THRESHOLDS = (0.0, 0.03, 0.06, 0.12, 0.24)
"""0 runs in full; 0.12 is the reference's."""
ROWS = ("color", "shape", "motion", "all")


def calibrate(pipeline: Pipeline) -> MagRatios:
    """Return the ratios of the model at its default size, from one run in full."""
    calibration = Calibration()
    generate(pipeline, GenerateRequest("a red circle moves right"), cache=calibration)
    return calibration.ratios("nano, one run in full")


def find_ratios(pipeline: Pipeline, path: Path) -> MagRatios:
    """Return the ratios that a study began with, or new ones, which are kept for it."""
    if path.is_file():
        return load_ratios(path)[0]
    ratios = calibrate(pipeline)
    save_ratios(path, ratios, {"num_steps": pipeline.settings.num_steps})
    return ratios


def schedule(ratios: MagRatios, threshold: float, num_steps: int) -> dict[Branch, str]:
    """Return which steps MagCache runs ("x") and skips ("."), per branch, one letter a step."""
    cache = MagCache(ratios, threshold=threshold)
    cache.begin(num_steps)
    ran: dict[Branch, list[str]] = {branch: ["."] * num_steps for branch in BRANCHES}
    for step in range(num_steps):
        for branch in BRANCHES:

            def run(visual: Tensor, marks: list[str] = ran[branch], place: int = step) -> Tensor:
                marks[place] = "x"
                return visual

            cache.around(branch)(torch.zeros(1, 1, 1), run)
    return {branch: "".join(marks) for branch, marks in ran.items()}


def answer(
    pipeline: Pipeline, question: HeldOut, ratios: MagRatios, threshold: float
) -> tuple[Row, Tensor]:
    """Make one clip at one threshold: a row, and its latents."""
    cache = MagCache(ratios, threshold=threshold) if threshold else None
    began = time.perf_counter()
    result = generate(pipeline, GenerateRequest(question.caption, seed=question.seed), cache=cache)
    seconds = time.perf_counter() - began
    frames = np.stack(list(result.frames()))
    counts = [] if cache is None else list(cache.counts.values())
    row: Row = {
        "right": {k: bool(v) for k, v in correct(measure(frames), question.scene).items()},
        "seconds": round(seconds, 3),
        "skipped": sum(each.skipped for each in counts),
        "calls": sum(each.calls for each in counts) or 2 * pipeline.settings.num_steps,
    }
    return row, result.latents


def study(pipeline: Pipeline, ratios: MagRatios, answers: Answers, count: int) -> None:
    """Answer what is still open, every question at all thresholds in turn."""
    with answers.go_on() as (done, add):
        for index, question in enumerate(TEST_SETS["t2v"].questions(count)):
            if all((f"{threshold:g}", index) in done for threshold in THRESHOLDS):
                continue
            full: Tensor | None = None
            for threshold in THRESHOLDS:
                row, latents = answer(pipeline, question, ratios, threshold)
                full = latents if full is None else full
                error = ((latents - full).norm() / full.norm()).item()
                add(f"{threshold:g}", index, row | {"error": round(error, 5)})
            logger.info("question %d", index)


def make_report(rows: dict[Place, Row], key: str, pipeline: Pipeline, ratios: MagRatios) -> str:
    """Return Markdown of everything that was answered, and of which steps were skipped."""
    settings = pipeline.settings
    lines = [
        "# MagCache on nano: time against quality",
        "",
        "Made by `python -m kandinsky_core.training.studies.cache --report",
        "docs/magcache_quality.md`; `--report-only` makes it of what is answered so far.",
        f"Proven on nano alone: weights `{key}`, {settings.num_steps} steps with guidance, ratios",
        "calibrated in one run. Every question at every threshold in turn, from the same noise.",
        "Faster is the median over questions of the ratio of sampling times; error the median",
        "relative distance of the final latents from the run in full. Shares of right answers with",
        "their paired differences from the run in full, question by question, in points, with 95 %",
        "intervals (Bonett and Price).",
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
    full = by_threshold[THRESHOLDS[0]]
    for threshold, answers in by_threshold.items():
        indices = sorted(set(answers) & set(full))
        if indices:
            chosen, base = ([each[i] for i in indices] for each in (answers, full))
            lines.append(_line(threshold, chosen, base))
    lines += ["", *_schedules(ratios, settings.num_steps)]
    return "\n".join(lines) + "\n"


def _line(threshold: float, chosen: Sequence[Row], full: Sequence[Row]) -> str:
    ratios = [before["seconds"] / row["seconds"] for before, row in zip(full, chosen, strict=True)]
    low, middle, high = np.percentile(ratios, [25, 50, 75])
    skipped = sum(row["skipped"] for row in chosen) / sum(row["calls"] for row in chosen)
    error = np.median([row["error"] for row in chosen])
    cells = []
    for what in ROWS:
        these, those = (
            np.array([row["right"][what] for row in each], bool) for each in (chosen, full)
        )
        cell = f"{these.mean():.0%}"
        if threshold:
            change, least, most = (100 * value for value in share_difference(these, those))
            cell += f", {change:+.0f} ({least:+.0f} to {most:+.0f})"
        cells.append(cell)
    return (
        f"| {f'{threshold:g}' if threshold else 'in full'} | {len(chosen)} | {skipped:.0%} | "
        f"{middle:.2f}x | {low:.2f} to {high:.2f} | {error:.3f} | " + " | ".join(cells) + " |"
    )


def _schedules(ratios: MagRatios, num_steps: int) -> list[str]:
    """Return the table of skipped steps, which the ratios alone decide."""
    lines = [
        "## Which steps are skipped",
        "",
        "The ratios alone decide it: x is a step that runs, a dot one that is skipped.",
        "",
        "| threshold | prompt | negative prompt | first skipped step | longest run skipped "
        "| steps where one of the two alone is skipped |",
        "|---|---|---|---|---|---|",
    ]
    alike: dict[tuple[str, ...], list[str]] = {}
    for threshold in THRESHOLDS[1:]:
        marks = schedule(ratios, threshold, num_steps)
        cond, uncond = marks.values()
        alike.setdefault((cond, uncond), []).append(f"{threshold:g}")
        longest = max(len(run) for each in marks.values() for run in each.split("x"))
        first = min((each.find(".") + 1 for each in marks.values() if "." in each), default="none")
        apart = sum(a != b for a, b in zip(cond, uncond, strict=True))
        lines.append(f"| {threshold:g} | `{cond}` | `{uncond}` | {first} | {longest} | {apart} |")
    lines += [
        "",
        f"At most {MAX_SKIPS} steps are skipped in a row, as in the reference. Where that limit",
        "comes before the threshold does, a higher threshold changes nothing",
        *(f"(the same schedule here: {' and '.join(n)})" for n in alike.values() if len(n) > 1),
        "and the error with it. Where one branch alone is skipped, guidance takes the difference",
        "of a new and a reused prediction, and multiplies what separates them by its scale:",
        "compare the last column with the errors above.",
    ]
    return lines


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--count", type=int, default=60, help="questions")
    parser.add_argument("--answers", type=Path, default=Path("runs/magcache"))
    parser.add_argument("--report", type=Path, help="Markdown file to write")
    parser.add_argument("--report-only", action="store_true", help="report what is answered so far")
    args = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    torch.set_grad_enabled(False)
    paths = {part: nano_path(part) for part in PARTS}
    answers, pipeline = Answers(args.answers, checksum(paths, {})), load(paths, {})
    args.answers.mkdir(parents=True, exist_ok=True)
    ratios = find_ratios(pipeline, args.answers / f"{answers.key}-ratios.json")
    if not args.report_only:
        study(pipeline, ratios, answers, args.count)
    report = make_report(answers.read(), answers.key, pipeline, ratios)
    if args.report is not None:
        write_text(args.report, report)
    sys.stdout.write(report)


if __name__ == "__main__":
    main()
