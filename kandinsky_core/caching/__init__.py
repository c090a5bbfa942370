"""Doing less work per step: MagCache, and the calibration that it needs."""

from .calibration import Calibration
from .magcache import BlockCache, Branch, Counts, MagCache
from .ratios import (
    MagRatios,
    describe_mismatch,
    describe_release,
    find_ratios,
    load_ratios,
    released_names,
    released_ratios,
    save_ratios,
)

__all__ = [
    "BlockCache",
    "Branch",
    "Calibration",
    "Counts",
    "MagCache",
    "MagRatios",
    "describe_mismatch",
    "describe_release",
    "find_ratios",
    "load_ratios",
    "released_names",
    "released_ratios",
    "save_ratios",
]
