"""Inputs that every node which samples has: one range and step each, a tooltip of its own."""

from __future__ import annotations

from comfy_api.latest import io

from ..kandinsky_core.seeds import MOST_SEED


def seed_input(tooltip: str, *, changes: bool = False) -> io.Input:
    """Make `seed`; where it `changes`, the page draws a new one for every run if it is told to."""
    return io.Int.Input(
        "seed",
        default=0,
        min=0,
        max=MOST_SEED,
        control_after_generate=changes or None,
        tooltip=tooltip,
    )


def steps_input(
    tooltip: str = "Sampling steps; 0 uses the checkpoint's number.", *, optional: bool = False
) -> io.Input:
    """Make `steps`; 0 asks the checkpoint."""
    return io.Int.Input("steps", default=0, min=0, max=1000, optional=optional, tooltip=tooltip)


def cfg_input(tooltip: str, *, optional: bool = False) -> io.Input:
    """Make `cfg`, guidance; 0 asks the checkpoint."""
    return io.Float.Input(
        "cfg", default=0.0, min=0.0, max=30.0, step=0.1, optional=optional, tooltip=tooltip
    )


def shift_input(tooltip: str, *, optional: bool = False) -> io.Input:
    """Make `shift`; 0 asks the model, then its checkpoint."""
    return io.Float.Input(
        "shift", default=0.0, min=0.0, max=100.0, step=0.1, optional=optional, tooltip=tooltip
    )
