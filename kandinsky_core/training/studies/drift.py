"""Colour drift of nano's image to video, before and after normalisation; run with `python -m`.

    python -m kandinsky_core.training.studies.drift --report docs/color_drift.md

Held-out questions of image to video are answered once each; the latents are decoded as they were
sampled and with the first frames normalised, and both are compared with the clip as rendered, whose
objects move too and set the floor. About 4 minutes on two cores.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from ...files import write_text
from ...flow import normalize_first_frames
from ...generate import Generated, GenerateRequest, generate
from ...models import to_model_space, to_vae_space
from ...pipeline import Pipeline
from ...video import ColorDrift, color_drift
from ..world import HeldOut, heldout_captions, render
from .evaluate import find_parts, load

NUM_FRAMES = 25
"""Seven latent frames: normalisation needs more than four."""


def normalized(result: Generated) -> Generated:
    """Return a result of image to video with its first frames normalised."""
    config = result.vae.config
    latents = normalize_first_frames(to_model_space(result.latents, config))
    return replace(result, latents=to_vae_space(latents, config))


def measure_drift(pipeline: Pipeline, question: HeldOut) -> dict[str, ColorDrift]:
    """Answer one question: drift of the clip as rendered, as sampled and normalised."""
    size = pipeline.settings.default_size[0]
    truth = render(question.scene, size, NUM_FRAMES)
    request = GenerateRequest(
        question.caption,
        task="i2v",
        image=truth[0],
        num_frames=NUM_FRAMES,
        seed=question.seed,
        normalize=False,
    )
    sampled = generate(pipeline, request)
    clips = {"as rendered": truth}
    for name, result in (("as sampled", sampled), ("normalised", normalized(sampled))):
        clips[name] = np.stack(list(result.frames()))
    return {name: color_drift(clip) for name, clip in clips.items()}


def drift_table(rows: Sequence[dict[str, ColorDrift]]) -> str:
    """Return Markdown: mean size of each kind of drift, levels of 255."""
    lines = ["| clip | brightness | contrast | color |", "|---|---|---|---|"]
    for name in rows[0]:
        means = np.abs([row[name] for row in rows]).mean(0)
        lines.append(f"| {name} | " + " | ".join(f"{mean:.2f}" for mean in means) + " |")
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=Path, help="folder of weights; default: the bundled ones")
    parser.add_argument("--count", type=int, default=60, help="clips")
    parser.add_argument("--steps", type=int, help="sampling steps; default: the model's")
    parser.add_argument("--report", type=Path, help="Markdown file to write")
    args = parser.parse_args(arguments)
    settings = {} if args.steps is None else {"num_steps": args.steps}
    pipeline = load(find_parts(args.model), settings)
    questions = heldout_captions(args.count, task="i2v")
    rows = [measure_drift(pipeline, question) for question in questions]
    report = f"""# Colour drift of image to video on nano

Made by `python -m kandinsky_core.training.studies.drift --report docs/color_drift.md`.
Proven on nano alone: {len(rows)} clips of {NUM_FRAMES} frames from held-out first frames. Mean
size of the change from the first frame to the others, levels of 255; what is rendered moves too
and sets the floor.

{drift_table(rows)}
"""
    if args.report is not None:
        write_text(args.report, report)
    sys.stdout.write(report)


if __name__ == "__main__":
    main()
