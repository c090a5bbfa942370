"""What a job will take before it runs: memory, operations, and whether it fits."""

from __future__ import annotations

from .jobs import USUAL_DENSITY, smaller_sizes, text_size
from .plan import GIB, Job
from .report import describe, fits, verdict

__all__ = [
    "GIB",
    "USUAL_DENSITY",
    "Job",
    "describe",
    "fits",
    "smaller_sizes",
    "text_size",
    "verdict",
]
