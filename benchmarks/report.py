"""Tables, data and plots of a run."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from kandinsky_core.files import atomic_write, write_text

from .case import Goal, Result
from .records import FILE, Section, as_data

TITLES = {
    "attention": "Sparse attention",
    "model": "Steps of the transformer",
    "vae": "Autoencoders",
    "family": "End to end and loading",
}
MIB = 2**20


def write(sections: Mapping[str, Section], folder: Path) -> None:
    """Write report.md, results.json and a plot of the attention speed-ups."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in (
        (FILE, json.dumps(as_data(sections), indent=1) + "\n"),
        ("report.md", as_markdown(sections)),
    ):
        write_text(folder / name, text)
    if "attention" in sections:
        plot_attention(sections["attention"].results, folder / "attention.png")


def as_markdown(sections: Mapping[str, Section]) -> str:
    """Return a table for each group; the first candidate of a case is what the others are held
    against."""
    lines = [
        "# Benchmarks",
        "",
        "Made by `make bench`: one process, candidates in turn, medians with quartiles; faster is",
        "the ratio of medians against the first candidate of the case. Memory is what was taken",
        "above the start: on a CPU the largest resident set, on CUDA the most that torch had given",
        "out. Random weights and inputs.",
    ]
    for group, title in TITLES.items():
        if group not in sections:
            continue
        section = sections[group]
        facts = section.machine.items()
        described = ", ".join(f"{key} {_text(value)}" for key, value in facts if value)
        lines += ["", f"## {title}", "", f"Measured on {section.date}: {described}."]
        lines += ["", "| work | candidate | ms | quartiles | faster | MiB |"]
        lines += ["|---|---|---|---|---|---|"]
        for result in section.results:
            lines += _rows(result)
        judged = [(result, goal) for result in section.results for goal in result.goals]
        if judged:
            lines += ["", "| goal | measured | goal | at least | |", "|---|---|---|---|---|"]
            lines += [_verdict(result, goal) for result, goal in judged]
        if group == "attention":
            lines += ["", "![Speed-up over dense attention](attention.png)"]
    return "\n".join(lines) + "\n"


def _rows(result: Result) -> list[str]:
    peer = next(iter(result.readings.values()))
    rows = []
    for index, (name, reading) in enumerate(result.readings.items()):
        peak = "" if reading.peak_bytes is None else f"{reading.peak_bytes / MIB:.0f}"
        rows.append(
            f"| {result.name if index == 0 else ''} | {name} | {_ms(reading.seconds)} | "
            f"{_ms(reading.low)} to {_ms(reading.high)} | "
            f"{'' if index == 0 else f'{peer.seconds / reading.seconds:.2f}x'} | {peak} |"
        )
    return rows


def _verdict(result: Result, goal: Goal) -> str:
    ratio = result.ratio(goal)
    what = "memory of " if goal.memory else ""
    if ratio is None:
        measured, verdict = "not measured", ""
    else:
        reached = ratio <= goal.least if goal.memory else ratio >= goal.least
        beyond = ratio <= goal.goal if goal.memory else ratio >= goal.goal
        measured = f"{ratio:.2f}x"
        verdict = "goal met" if beyond else "reached" if reached else "**missed**"
    return (
        f"| {what}{goal.ours} against {goal.peer}: {result.name} | {measured} | "
        f"{goal.goal:g}x | {goal.least:g}x | {verdict} |"
    )


def plot_attention(results: Sequence[Result], path: Path) -> None:
    """Plot the speed-up over density at one length, and over length at 10 %, with the ideal."""
    from matplotlib import pyplot

    chosen = [r for r in results if r.facts.get("head_dim") == 64]
    if not chosen:
        return
    lengths = [r.facts["tokens"] for r in chosen]
    middle = max(set(lengths), key=lengths.count)
    figure, axes = pyplot.subplots(1, 2, figsize=(10, 4), layout="constrained")
    for axis, key, rows in (
        (axes[0], "density", [r for r in chosen if r.facts["tokens"] == middle]),
        (axes[1], "tokens", [r for r in chosen if r.facts["density"] == 0.1]),
    ):
        for dtype, style in (("fp32", "-o"), ("bf16", "--s")):
            of_dtype = sorted(
                (r for r in rows if r.facts["dtype"] == dtype), key=lambda r: r.facts[key]
            )
            for name in {name for r in of_dtype for name in r.readings} - {"sdpa dense"}:
                points = [
                    (
                        r.facts[key],
                        r.readings["sdpa dense"].seconds / r.readings[name].seconds,
                    )
                    for r in of_dtype
                    if name in r.readings
                ]
                axis.plot(*zip(*points, strict=True), style, label=f"{name}, {dtype}")
        ideal = sorted({(r.facts[key], r.facts["ideal"]) for r in rows})
        axis.plot(*zip(*ideal, strict=True), ":", color="gray", label="ideal")
        axis.set(xscale="log", yscale="log", xlabel=key, ylabel="times faster than dense")
        axis.grid(visible=True, which="both", alpha=0.3)
    axes[0].legend(fontsize=8)
    with atomic_write(path) as part:
        figure.savefig(part, dpi=120)
    pyplot.close(figure)


def _ms(seconds: float) -> str:
    return f"{seconds * 1000:.3g}" if seconds < 1 else f"{seconds * 1000:.0f}"


def _text(value: Any) -> str:
    return " and ".join(value) if isinstance(value, list) else str(value)
