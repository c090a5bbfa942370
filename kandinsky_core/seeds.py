"""Seeds: those that torch's generators take and ComfyUI's widgets hold."""

from __future__ import annotations

MOST_SEED = 2**64 - 1
"""The largest; the least is 0."""


def check_seed(seed: int) -> None:
    """Refuse what is no seed.

    Raises:
        ValueError: The number is out of range.
    """
    if not 0 <= seed <= MOST_SEED:
        raise ValueError(f"seed is {seed}: expected a whole number from 0 to {MOST_SEED}")
