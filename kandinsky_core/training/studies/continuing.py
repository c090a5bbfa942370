"""What nano makes of given frames that it was not trained with; run with `python -m`.

    python -m kandinsky_core.training.studies.continuing --report docs/continuing_quality.md

Held-out scenes are rendered, some of their frames are given, and the model makes the others: one
first frame, as in training, several, or the first and the last. A last frame is encoded here as a
clip of its own, which comes to the latents of the equal frames that `generate` encodes, but for
rounding. The oracle judges the whole clip; smoothness is the largest change from one frame to the
next, as a multiple of the rendered clip's. About 8 minutes on two cores.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ...files import write_text
from ...flow import VisualCondition
from ...generate import GenerateRequest, generate
from ...models import to_model_space
from ...pipeline import Pipeline
from ...video import to_pixels
from ..world import HeldOut, correct, heldout_captions, measure, render
from ..world.accuracy import wilson_interval
from .evaluate import find_parts, load

NUM_FRAMES = 25
JUDGED = ("color", "shape", "motion", "all")


@dataclass(frozen=True)
class Given:
    """Which frames of a clip the model does not have to make."""

    name: str
    first: int
    """Frames at the start: 1, or one more than a multiple of 4."""
    last: bool = False
    """Whether the last frame is given too."""


VARIANTS = (
    Given("first frame (as trained)", 1),
    Given("first 5 frames", 5),
    Given("first 9 frames", 9),
    Given("first and last frame", 1, last=True),
)


@torch.no_grad()
def complete(pipeline: Pipeline, question: HeldOut, truth: np.ndarray, given: Given) -> np.ndarray:
    """Make a clip of which some frames are given.

    Args:
        pipeline: A model that takes a first frame.
        question: What is asked for.
        truth: The rendered clip, uint8 (F, H, W, 3).
        given: Which of its frames to give.

    Returns:
        uint8 (F, H, W, 3).
    """

    def encode(frames: np.ndarray) -> Tensor:
        return to_model_space(pipeline.vae.encode(to_pixels(frames)), pipeline.vae.config)

    condition = VisualCondition(
        encode(truth[: given.first]), last_frame=encode(truth[-1:]) if given.last else None
    )
    num_frames, height, width, _ = truth.shape
    request = GenerateRequest(
        question.caption,
        task="i2v",
        image=truth[0],
        height=height,
        width=width,
        num_frames=num_frames,
        seed=question.seed,
        normalize=False,
    )
    return np.stack(list(generate(pipeline, request, condition=condition).frames()))


def largest_change(frames: np.ndarray) -> float:
    """Return largest mean change of a pixel from one frame to the next, levels of 255."""
    steps = np.abs(np.diff(frames.astype(np.float32), axis=0))
    return float(steps.mean(axis=(1, 2, 3)).max())


def make_table(rows: dict[str, list[dict[str, float]]]) -> str:
    """Return Markdown: shares with 95 % intervals, and the median largest change against
    rendered."""
    lines = [
        f"| given | clips | {' | '.join(JUDGED)} | largest change |",
        "|" + "---|" * (len(JUDGED) + 3),
    ]
    for name, answers in rows.items():
        cells = []
        for what in JUDGED:
            hits = int(sum(row[what] for row in answers))
            low, high = wilson_interval(hits, len(answers))
            cells.append(f"{hits / len(answers):.0%} ({low:.0%} to {high:.0%})")
        change = np.median([row["change"] for row in answers])
        lines.append(f"| {name} | {len(answers)} | {' | '.join(cells)} | {change:.2f}x |")
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=Path, help="folder of weights; default: the bundled ones")
    parser.add_argument("--count", type=int, default=40, help="clips of each kind")
    parser.add_argument("--steps", type=int, help="sampling steps; default: the model's")
    parser.add_argument("--report", type=Path, help="Markdown file to write")
    args = parser.parse_args(arguments)
    pipeline = load(find_parts(args.model), {} if args.steps is None else {"num_steps": args.steps})
    size = pipeline.settings.default_size[0]
    rows: dict[str, list[dict[str, float]]] = {given.name: [] for given in VARIANTS}
    for question in heldout_captions(args.count, task="i2v"):
        truth = render(question.scene, size, NUM_FRAMES)
        for given in VARIANTS:
            frames = complete(pipeline, question, truth, given)
            right = correct(measure(frames), question.scene)
            answer = {what: float(right[what]) for what in JUDGED}
            answer["change"] = largest_change(frames) / max(largest_change(truth), 1e-6)
            rows[given.name].append(answer)
    report = f"""# Given frames that nano was not trained with

Made by `python -m kandinsky_core.training.studies.continuing --report docs/continuing_quality.md`.
Proven on nano alone: {size} x {size}, {NUM_FRAMES} frames, {args.count} held-out scenes, whose
frames are given as rendered and whose other frames the model makes. Shares of right answers of the
oracle over the whole clip, with 95 % Wilson intervals; the median largest change from one frame to
the next, as a multiple of the rendered clip's.

{make_table(rows)}
"""
    if args.report is not None:
        write_text(args.report, report)
    sys.stdout.write(report)


if __name__ == "__main__":
    main()
