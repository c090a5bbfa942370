"""The report of `sparsity_study`, from its rows: every variant against dense, question by question.

Only questions that all variants answered count, so every row is about the same clips.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from .answers import Place, Row
from .features import frechet_distance
from .intervals import around, resamples, share_difference

WHAT = ("color", "shape", "motion", "all", "count")
TITLES = {"t2v": "One object", "two_objects": "Two objects"}
CAUTION = (
    "* What was not found may be there all the same, and what was found may be chance: with six "
    "intervals each, up to one variant in four has one that leaves 0 out by chance alone."
)


@dataclass(frozen=True)
class Finding:
    """What tells one variant from dense attention."""

    label: str
    """The variant, with its measured sparsity."""
    worse: tuple[str, ...]
    """Columns whose interval lies wholly on the worse side of 0."""
    better: tuple[str, ...]
    """Columns whose interval lies wholly on the better side."""
    resolution: float
    """Half the width of the interval of "all", in [0, 1]: about the least that would have shown."""


def make_report(
    rows: Mapping[Place, Row], names: Sequence[str], sets: Sequence[str], how: str
) -> str:
    """Return Markdown of everything that all variants answered.

    Args:
        rows: Answers by place, whose names are "variant/set".
        names: Of the variants; the first is what the others are compared with.
        sets: Names of the lists of questions.
        how: Weights, sizes and tiles, in words.

    Returns:
        The report.
    """
    lines = [
        "# Does NABLA cost quality?",
        "",
        "Made by `python -m kandinsky_core.training.studies.sparsity --report",
        "docs/nabla_quality.md`; `--report-only` makes it of what is answered so far. Proven on",
        f"nano alone: {how}.",
        "The bundled weights were trained dense. Every row answers the same captions from the same",
        "noise and is named by the sparsity that was measured. Differences from dense are paired,",
        "question by question, in points, with 95 % intervals (Bonett and Price). The Frechet",
        "distance is to rendered clips of the same captions, in features of a classifier trained",
        "on this world; its intervals come of resampling questions, for all rows alike.",
    ]
    verdicts = []
    for each in sets:
        of_set = {
            name: {i: row for (place, i), row in rows.items() if place == f"{name}/{each}"}
            for name in names
        }
        complete = sorted(set.intersection(*(set(answers) for answers in of_set.values())))
        title = TITLES[each]
        lines += ["", f"## {title}: {len(complete)} questions answered by all variants", ""]
        if len(complete) < 2:
            lines.append("Too few to compare.")
            continue
        chosen = {name: [of_set[name][i] for i in complete] for name in names}
        table, findings = _section(chosen)
        lines += table
        dense = float(np.mean([row["right"]["all"] for row in chosen[names[0]]]))
        verdicts.append(verdict(title, len(complete), dense, findings))
    if verdicts:
        lines += ["", "## Verdict", "", *verdicts, CAUTION]
    return "\n".join(lines) + "\n"


def _section(chosen: Mapping[str, Sequence[Row]]) -> tuple[list[str], list[Finding]]:
    """Return the table of one set, and what was found of each variant but the first."""
    base, *others = chosen
    draws = resamples(len(chosen[base]))
    right = {
        name: {what: np.array([row["right"][what] for row in rows], bool) for what in WHAT}
        for name, rows in chosen.items()
    }
    rendered = np.array([row["rendered"] for row in chosen[base]])
    made = {name: np.array([row["features"] for row in rows]) for name, rows in chosen.items()}
    distances = {name: float(frechet_distance(made[name], rendered)) for name in chosen}
    drawn = {name: frechet_distance(made[name][draws], rendered[draws]) for name in chosen}

    table = [
        f"| attention | window | P | {' | '.join(WHAT)} | Frechet |",
        "|" + "---|" * (4 + len(WHAT)),
    ]
    findings = []
    for name, rows in chosen.items():
        shares = {what: float(right[name][what].mean()) for what in WHAT}
        label = _label(name, rows)
        window = "x".join(map(str, rows[0]["window"] or ()))
        p = "" if rows[0]["p"] is None else f"{rows[0]['p']:.3f}"
        _, low, high = around(distances[name], drawn[name])
        cells = [f"{share:.0%}" for share in shares.values()]
        cells.append(f"{distances[name]:.2f} ({max(0.0, low):.2f} to {high:.2f})")
        if name in others:
            differences = {
                what: share_difference(right[name][what], right[base][what]) for what in WHAT
            }
            apart = around(distances[name] - distances[base], drawn[name] - drawn[base])
            spoken = [_points(differences[what]) for what in WHAT]
            spoken.append(f"{apart[0]:+.2f} ({apart[1]:+.2f} to {apart[2]:+.2f})")
            cells = [f"{cell}, {each}" for cell, each in zip(cells, spoken, strict=True)]
            findings.append(_find(label, differences, apart))
        table.append(f"| {label} | {window} | {p} | {' | '.join(cells)} |")
    return table, findings


def _label(name: str, rows: Sequence[Row]) -> str:
    """Return the variant by what was measured."""
    density = float(np.mean([row["density"] for row in rows]))
    return name if density == 1 else f"{name.rsplit(' ', 1)[0]}, {1 - density:.1%}"


def _points(difference: tuple[float, float, float]) -> str:
    middle, low, high = (100 * value for value in difference)
    return f"{middle:+.0f} ({low:+.0f} to {high:+.0f})"


def _find(
    label: str,
    differences: Mapping[str, tuple[float, float, float]],
    apart: tuple[float, float, float],
) -> Finding:
    """Look for intervals that do not hold 0."""
    worse, better = [], []
    for what, (_, low, high) in differences.items():
        if not low <= 0 <= high:
            (worse if high < 0 else better).append(what)
    if not apart[1] <= 0 <= apart[2]:
        (worse if apart[1] > 0 else better).append("Frechet")
    _, low, high = differences["all"]
    return Finding(label, tuple(worse), tuple(better), (high - low) / 2)


def verdict(title: str, count: int, dense: float, findings: Sequence[Finding]) -> str:
    """Say in one line what this many questions can say.

    Args:
        title: Name of the list of questions.
        count: How many all variants answered.
        dense: Share that dense attention answers right in all, in [0, 1].
        findings: One for each variant but dense.

    Returns:
        A line of Markdown.
    """
    apart = [each for each in findings if each.worse or each.better]
    alike = [each.resolution for each in findings if not (each.worse or each.better)]
    said = []
    for each in apart:
        sides = (("worse", each.worse), ("better", each.better))
        found = [f"{word} than dense in {', '.join(what)}" for word, what in sides if what]
        said.append(f"{each.label} is {' and '.join(found)}")
    if alike:
        low, high = (f"{100 * bound:.0f}" for bound in (min(alike), max(alike)))
        span = low if low == high else f"{low} to {high}"
        said.append(
            f"of the {'other ' if apart else ''}{len(alike)} no difference was found, where one "
            f"below {span} points in all would not have shown"
        )
    return f"* {title}, {count} captions ({dense:.0%} all right with dense): {'; '.join(said)}."
