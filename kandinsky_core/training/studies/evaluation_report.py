"""The report of `evaluate`, from its rows: tables with 95 % intervals."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from ...family.settings import SamplingSettings
from ..world import COLORS, EDIT_KINDS, MOTIONS, SHAPES, heldout_checksum
from ..world.accuracy import wilson_interval
from .answers import Row

TITLES = {
    "t2v": "Text to video",
    "i2v": "Image to video",
    "t2i": "Text to image",
    "two_objects": "Text to video, two objects (no floor)",
    "i2i": "Image editing",
}
GOALS: dict[str, dict[str, float]] = {
    "t2v": {"color": 0.9, "shape": 0.9, "motion": 0.9, "all": 0.8},
    "i2v": {"motion": 0.85},
    "t2i": {"all": 0.9},
    "i2i": {"edited": 0.85, "kept": 0.9},
}
"""What the first nano model was meant to reach."""
FLOORS: dict[str, dict[str, float]] = {
    "t2v": {"color": 0.9, "count": 0.75, "shape": 0.75, "motion": 0.75, "all": 0.65},
    "i2v": {"color": 0.9, "size": 0.8, "shape": 0.75, "motion": 0.8},
    "t2i": {"color": 0.9, "background": 0.8, "shape": 0.7},
    "i2i": {"edited": 0.75, "kept": 0.75},
}
"""What a sample of sixteen reaches unless something is broken: below the whole list's shares by
what sixteen draws may vary."""
ROWS = (
    "edited", "kept", "color", "shape", "motion", "all", "size", "count", "background", "camera",
)  # fmt: skip
I2V_PSNR_GOAL = 25.0


def make_report(
    rows: Sequence[Row],
    key: str,
    settings: SamplingSettings,
    seconds: float,
    threads: int,
    peak_mb: float | None,
    command: str,
) -> str:
    """Return Markdown of everything that was measured."""
    height, width = settings.default_size
    edits = any(row["set"] == "i2i" for row in rows)
    memory = "" if peak_mb is None else f" Peak memory of the process: {peak_mb:.0f} MB."
    lines = [
        f"# What the nano {'edit ' * edits}model can do",
        "",
        f"Made by `python -m kandinsky_core.training.studies.{command}`.",
        "Combinations of shape, colour and motion (images: background) that training never showed;",
        "fixed seeds; judged by the oracle of the synthetic world. Intervals are 95 % Wilson",
        "intervals.",
        "",
        f"* Weights and settings `{key}`; held-out list SHA-256 `{heldout_checksum()}`.",
        f"* {height} x {width}, {settings.num_frames} frame{'s' * (settings.num_frames > 1)}, "
        f"{settings.num_steps} steps, guidance "
        f"{settings.guidance_scale:g}, shift {settings.shift:g}.",
        f"* {'An edit' if edits else 'A clip'} takes {seconds:.1f} s on {threads} threads, "
        f"decoding included.{memory}",
        "",
    ]
    for name, title in TITLES.items():
        answers = [row for row in rows if row["set"] == name]
        if answers:
            lines += [f"## {title}: {len(answers)} captions", "", *_section(name, answers), ""]
    return "\n".join(lines)


def failures(rows: Sequence[Row]) -> list[str]:
    """Return the floors that the rows miss, each as a phrase."""
    missed = []
    for name, floors in FLOORS.items():
        answers = [row for row in rows if row["set"] == name]
        for what, floor in floors.items():
            hits = sum(row["right"][what] for row in answers)
            if answers and hits < floor * len(answers):
                missed.append(f"{name} {what} {hits}/{len(answers)} (floor {floor:.0%})")
    return missed


def _section(name: str, answers: Sequence[Row]) -> list[str]:
    lines = ["| right | share | 95 % | goal |", "|---|---|---|---|"]
    goals = GOALS.get(name, {})
    for what in ROWS:
        if what in answers[0]["right"]:
            goal = f"{goals[what]:.0%}" if what in goals else ""
            lines.append(f"| {what} | {_share(answers, what)} | {goal} |")
    if name == "i2v":
        values = np.array([row["psnr"] for row in answers])
        lines += [
            "",
            f"First frame against the given image: mean {values.mean():.1f} dB, lowest "
            f"{values.min():.1f} dB, {np.mean(values >= I2V_PSNR_GOAL):.0%} at "
            f"{I2V_PSNR_GOAL:.0f} dB or more.",
        ]
    for language in ("en", "ru"):
        spoken = [row for row in answers if row["language"] == language]
        if spoken:
            share = _share(spoken, "all").split(" |")[0]
            lines += ["", f"Captions in {language}: all right {share}."]
    if name == "i2i":
        lines += ["", "| edit | edited | kept | both |", "|---|---|---|---|"]
        for kind in EDIT_KINDS:
            rows = [row["right"] for row in answers if row["asked"]["edit"] == kind]
            sums = (sum(right[what] for right in rows) for what in ("edited", "kept", "all"))
            lines.append(f"| {kind} | " + " | ".join(f"{hits}/{len(rows)}" for hits in sums) + " |")
    elif name != "two_objects":
        for what, names in (("shape", SHAPES), ("color", COLORS), ("motion", MOTIONS)):
            if what in answers[0]["right"]:
                lines += ["", *_breakdown(what, names, answers)]
    return lines


def _breakdown(what: str, names: Iterable[str], answers: Sequence[Row]) -> list[str]:
    lines = [f"| asked {what} | {what} right | 95 % | all right |", "|---|---|---|---|"]
    for name in names:
        asked = [row for row in answers if row["asked"][what] == name]
        if asked:
            everything = sum(row["right"]["all"] for row in asked)
            lines.append(f"| {name} | {_share(asked, what)} | {everything}/{len(asked)} |")
    return lines


def _share(answers: Sequence[Row], what: str) -> str:
    hits = sum(row["right"][what] for row in answers)
    low, high = wilson_interval(hits, len(answers))
    return f"{hits}/{len(answers)} = {hits / len(answers):.1%} | {low:.1%} to {high:.1%}"
