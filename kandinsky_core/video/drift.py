"""How far colours move away from those of the first frame, which image to video should keep."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from .pixels import Frames

LUMA = np.array([0.299, 0.587, 0.114])
"""Weights of red, green and blue in brightness (BT.601)."""


class ColorDrift(NamedTuple):
    """Means over the frames after the first, against the first; levels of 255."""

    brightness: float
    """Of the mean brightness; above 0 is brighter."""
    contrast: float
    """Of the standard deviation of brightness; above 0 is harsher."""
    color: float
    """Distance of the mean red, green and blue, at least 0."""


def color_drift(frames: Frames) -> ColorDrift:
    """Measure the colour drift of a clip.

    What enters, leaves or grows counts too: compare clips of the same content.

    Args:
        frames: uint8 (F, H, W, 3), RGB, at least two.

    Raises:
        ValueError: There are fewer.
    """
    if len(frames) < 2:
        raise ValueError(f"colour drift needs at least 2 frames, got {len(frames)}; give a clip.")
    luma = frames @ LUMA  # (F, H, W)
    brightness, contrast = luma.mean((1, 2)), luma.std((1, 2))
    color = frames.mean((1, 2))  # (F, 3)
    return ColorDrift(
        float((brightness[1:] - brightness[0]).mean()),
        float((contrast[1:] - contrast[0]).mean()),
        float(np.linalg.norm(color[1:] - color[0], axis=1).mean()),
    )
