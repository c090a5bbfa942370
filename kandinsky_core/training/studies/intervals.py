"""Intervals of differences between two ways to answer the same questions.

Letters: R resamples, N questions.
"""

from __future__ import annotations

import math

import numpy as np

Z = 1.96
"""Standard deviations of a 95 % interval."""
RESAMPLES = 1000


def share_difference(
    these: np.ndarray, those: np.ndarray, z: float = Z
) -> tuple[float, float, float]:
    """Return the difference of two shares of right answers to the same questions, with 95 %
    interval.

    Source: Bonett and Price 2012, adjusted Wald interval for paired proportions; unlike a
    bootstrap it keeps a width where both answer alike everywhere.

    Args:
        these: Boolean (N,).
        those: Boolean (N,), what is subtracted.
        z: Standard deviations of the interval.

    Returns:
        The difference, and the ends of its interval, in [-1, 1].
    """
    count = len(these)
    gained, lost = int((these & ~those).sum()), int((~these & those).sum())
    p_gained, p_lost = (gained + 1) / (count + 2), (lost + 1) / (count + 2)
    middle = p_gained - p_lost
    reach = z * math.sqrt((p_gained + p_lost - middle * middle) / (count + 2))
    difference = (gained - lost) / count
    return difference, max(-1.0, middle - reach), min(1.0, middle + reach)


def resamples(count: int, *, repeats: int = RESAMPLES, seed: int = 0) -> np.ndarray:
    """Return questions drawn with replacement, the same on every call: indices (R, N)."""
    return np.random.default_rng(seed).integers(count, size=(repeats, count))


def around(value: float, resampled: np.ndarray, z: float = Z) -> tuple[float, float, float]:
    """Return a value with the interval that its bootstrapped standard deviation gives.

    Not percentiles: resampled distances lie above the distance itself, because drawing twice
    from the same questions makes the fitted Gaussians worse.

    Args:
        value: What all questions give.
        resampled: What the resamples give (R,).
        z: Standard deviations of the interval.

    Returns:
        The value and the ends of its interval.
    """
    reach = z * float(resampled.std(ddof=1))
    return value, value - reach, value + reach
