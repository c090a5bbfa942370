"""Time and memory of several ways to do the same thing, in one process.

Candidates take turns, so that whatever else the machine does meets all of them; medians and
quartiles are reported, and speed only as a ratio of medians within one run.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from statistics import median, quantiles

from .meter import Meter, Run

MIN_SECONDS = 0.05
"""A shorter candidate is run several times for one reading."""


@dataclass(frozen=True)
class Reading:
    """What was measured of one candidate."""

    seconds: float
    """Median."""
    low: float
    """Lower quartile, seconds."""
    high: float
    """Upper quartile, seconds."""
    repeats: int
    """Readings."""
    peak_bytes: int | None
    """Most memory above the start; None where the system does not tell."""


def compare(
    candidates: Mapping[str, Run],
    meter: Meter,
    *,
    repeats: int = 7,
    warmups: int = 1,
    budget: float = 60.0,
) -> dict[str, Reading]:
    """Measure candidates in turn.

    Args:
        candidates: Name -> what to run.
        meter: Of the device they run on.
        repeats: Readings of each, at least 3.
        warmups: Runs of each before anything counts; compilation happens there.
        budget: Seconds for all readings together; fewer are taken (at least 3) if it runs out.

    Returns:
        Name -> reading, in the same order.
    """
    assert repeats >= 3, repeats
    peaks = {}
    inner = {}
    for name, run in candidates.items():
        for _ in range(warmups):
            run()
        took: list[float] = []
        watched = partial(_note_seconds, run, meter, took)
        peaks[name] = meter.peak_bytes(watched)
        if not took:  # a device without a gauge did not run it
            watched()
        inner[name] = max(1, round(MIN_SECONDS / max(took[0], 1e-9)))
    seconds: dict[str, list[float]] = {name: [] for name in candidates}
    started = meter.now()
    for turn in range(repeats):
        if turn >= 3 and meter.now() - started > budget:
            break
        for name, run in candidates.items():
            began = meter.now()
            for _ in range(inner[name]):
                run()
            seconds[name].append((meter.now() - began) / inner[name])
    return {
        name: Reading(median(values), *_quartiles(values), len(values), peaks[name])
        for name, values in seconds.items()
    }


def _note_seconds(run: Run, meter: Meter, took: list[float]) -> None:
    began = meter.now()
    run()
    took.append(meter.now() - began)


def _quartiles(values: list[float]) -> tuple[float, float]:
    first, _, third = quantiles(values, n=4, method="inclusive")
    return first, third
