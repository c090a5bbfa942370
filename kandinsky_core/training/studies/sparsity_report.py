"""The report of `sparsity_study`, from its rows: every variant against dense, question by question.

Only questions that all variants answered count, so every row is about the same clips.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from .answers import Place, Row
from .features import frechet_distance
from .intervals import around, resamples, share_difference

WHAT = ("color", "shape", "motion", "all", "count")
TITLES = {"t2v": "One object", "two_objects": "Two objects"}


def make_report(
    rows: Mapping[Place, Row], names: Sequence[str], sets: Sequence[str], how: str
) -> str:
    """Markdown of everything that all variants answered.

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
    verdicts = ["", "## Verdict", ""]
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
        table, spoken = _section(chosen)
        lines += table
        verdicts += [f"{title}:", "", *spoken, ""]
    if len(verdicts) > 3:
        verdicts += [
            "Each line looks at six intervals, so that by chance alone about one line in four, or",
            "fewer as they go together, leaves the noise in one of them.",
        ]
        lines += verdicts
    return "\n".join(lines) + "\n"


def _section(chosen: Mapping[str, Sequence[Row]]) -> tuple[list[str], list[str]]:
    """The table of one set, and a verdict per variant but the first."""
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
    verdicts = []
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
            verdicts.append(_verdict(label, differences, apart))
        table.append(f"| {label} | {window} | {p} | {' | '.join(cells)} |")
    return table, verdicts


def _label(name: str, rows: Sequence[Row]) -> str:
    """The variant by what was measured."""
    density = float(np.mean([row["density"] for row in rows]))
    return name if density == 1 else f"{name.rsplit(' ', 1)[0]}, {1 - density:.1%}"


def _points(difference: tuple[float, float, float]) -> str:
    middle, low, high = (100 * value for value in difference)
    return f"{middle:+.0f} ({low:+.0f} to {high:+.0f})"


def _verdict(
    label: str,
    differences: Mapping[str, tuple[float, float, float]],
    apart: tuple[float, float, float],
) -> str:
    """Whether every paired interval holds 0, and what this many clips could have shown."""
    worse, better = [], []
    for what, (_, low, high) in differences.items():
        if not low <= 0 <= high:
            (worse if high < 0 else better).append(what)
    if not apart[1] <= 0 <= apart[2]:
        (worse if apart[1] > 0 else better).append("Frechet")
    found = [f"{word} in {', '.join(n)}" for word, n in (("worse", worse), ("better", better)) if n]
    verdict = "within noise of dense" if not found else "not within noise: " + "; ".join(found)
    least = 100 * (differences["all"][2] - differences["all"][1]) / 2
    return (
        f"* {label}: {verdict} (differences of about {least:.0f} points in all and "
        f"{(apart[2] - apart[1]) / 2:.2f} in the distance would have shown)."
    )
