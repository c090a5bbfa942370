"""Time and memory of several ways to do the same thing, in one process.

Candidates take turns, so that whatever else the machine does meets all of them; medians and
quartiles are reported, and speed only as a ratio of medians within one run. Memory is the largest
resident set of the process above what it was before, which Linux keeps and lets be reset.
"""

from __future__ import annotations

import ctypes
import gc
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import median, quantiles

Run = Callable[[], object]

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
    """Largest resident set above the start; None where the system does not tell."""


def compare(
    candidates: Mapping[str, Run], *, repeats: int = 7, warmups: int = 1, budget: float = 60.0
) -> dict[str, Reading]:
    """Measure candidates in turn.

    Args:
        candidates: Name -> what to run.
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
        peaks[name] = peak_bytes(run)
        began = time.perf_counter()
        run()
        inner[name] = max(1, round(MIN_SECONDS / max(time.perf_counter() - began, 1e-9)))
    seconds: dict[str, list[float]] = {name: [] for name in candidates}
    started = time.perf_counter()
    for turn in range(repeats):
        if turn >= 3 and time.perf_counter() - started > budget:
            break
        for name, run in candidates.items():
            began = time.perf_counter()
            for _ in range(inner[name]):
                run()
            seconds[name].append((time.perf_counter() - began) / inner[name])
    return {
        name: Reading(median(values), *_quartiles(values), len(values), peaks[name])
        for name, values in seconds.items()
    }


def _quartiles(values: list[float]) -> tuple[float, float]:
    first, _, third = quantiles(values, n=4, method="inclusive")
    return first, third


def peak_bytes(run: Run) -> int | None:
    """Largest resident set of one run above what was resident before; None off Linux."""
    reset, status = Path("/proc/self/clear_refs"), Path("/proc/self/status")
    if not sys.platform.startswith("linux") or not status.exists():
        return None
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    try:
        reset.write_text("5")
    except OSError:
        return None
    before = _status(status, "VmRSS")
    run()
    return max(0, _status(status, "VmHWM") - before)


def _status(path: Path, key: str) -> int:
    """An entry of /proc/self/status in bytes."""
    line = next(line for line in path.read_text().splitlines() if line.startswith(key + ":"))
    return int(line.split()[1]) * 1024
