"""Finds the objects of one frame and measures their outlines below the pixel.

An object is a connected region whose colour is far from the background's. Its soft coverage (how
much of a pixel it fills) comes from where the pixel lies between the two colours; centre and area
are moments of the coverage. The outline seen from the centre is a radius for every direction, and
its Fourier coefficients tell the shapes apart: order 3 for the triangle, 4 for the square, 5 for
the star, none for the circle; their phase is the orientation.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import NamedTuple

import cv2
import numpy as np

from .scene import BACKGROUNDS, COLORS

ORDERS = (2, 3, 4, 5, 6)
"""Orders of the outline's Fourier coefficients that a blob carries."""

_NUM_ANGLES = 120
_RADIAL_STEP = 0.5
_FAR = (
    20.0  # Lab distance from the background at which a pixel is an object's; its dots stay below 8
)
_MIN_AREA = 0.02  # world units squared; the smallest object in the world has 0.09
_MAX_BLOBS = 6
_COLOR_LIMIT = 32.0  # Lab; blue and purple are 29 apart, other object colours further


class Blob(NamedTuple):
    """One object in one frame, in screen coordinates (the frame spans [-1, 1])."""

    x: float
    y: float
    area: float
    """World units squared, of 4 for the whole frame."""
    lab: np.ndarray
    """Median colour of the inner pixels, CIE Lab."""
    harmonics: np.ndarray
    """Complex Fourier coefficients, ``ORDERS``, of radius over angle, relative to its mean."""


def to_lab(rgb: np.ndarray) -> np.ndarray:
    """Return CIE Lab of uint8 RGB (H, W, 3): float32, L in [0, 100]."""
    return cv2.cvtColor(rgb.astype(np.float32) / 255, cv2.COLOR_RGB2Lab)


@lru_cache(maxsize=1)
def _palette() -> tuple[np.ndarray, np.ndarray]:
    """Return the Lab of the object colours and of the background colours."""
    colors = np.array([list(COLORS.values())], np.uint8)
    backgrounds = np.array([list(BACKGROUNDS.values())], np.uint8)
    return to_lab(colors)[0], to_lab(backgrounds)[0]


def nearest_color(lab: np.ndarray) -> str | None:
    """Name of the object colour nearest to a Lab colour (3,); None when it is like none of them."""
    distance = np.linalg.norm(_palette()[0] - lab, axis=1)
    nearest = int(distance.argmin())
    return tuple(COLORS)[nearest] if distance[nearest] < _COLOR_LIMIT else None


def find_background(lab_frames: np.ndarray) -> tuple[str, np.ndarray]:
    """Name of the background of Lab frames (F, H, W, 3) and its typical Lab colour (3,)."""
    objects, backgrounds = _palette()
    pixels = lab_frames[:, ::4, ::4].reshape(-1, 3)
    palette = np.concatenate([backgrounds, objects])
    nearest = np.linalg.norm(pixels[:, None] - palette[None], axis=2).argmin(axis=1)
    votes = np.bincount(nearest, minlength=len(palette))[: len(backgrounds)]
    winner = int(votes.argmax())
    own = pixels[nearest == winner] if votes[winner] else pixels
    return tuple(BACKGROUNDS)[winner], np.median(own, axis=0)


def find_blobs(
    rgb: np.ndarray, lab: np.ndarray, background: np.ndarray
) -> tuple[list[Blob], np.ndarray]:
    """Measure every object of one frame.

    Args:
        rgb: The frame, float32 (H, W, 3), 0 to 255.
        lab: The same in Lab.
        background: Lab colour of the background (3,).

    Returns:
        The blobs, largest first, and a mask (H, W) bool of all pixels far from the background.
    """
    size = rgb.shape[0]
    unit = size / 2
    far = np.linalg.norm(lab - background, axis=2) > _FAR
    mask = cv2.morphologyEx(far.astype(np.uint8), cv2.MORPH_OPEN, np.ones((3, 3), np.uint8))
    num, labels, stats, _ = cv2.connectedComponentsWithStats(mask, connectivity=4)
    order = sorted(range(1, num), key=lambda i: -stats[i, cv2.CC_STAT_AREA])
    reach = max(2, round(size / 50))
    blobs = []
    for label in order[:_MAX_BLOBS]:
        x, y, width, height, pixels = stats[label]
        if pixels / unit**2 < _MIN_AREA:
            break
        pad = reach + 2
        window = (slice(max(y - pad, 0), y + height + pad), slice(max(x - pad, 0), x + width + pad))
        own = (labels[window] == label).astype(np.uint8)
        others = (mask[window] > 0) & (own == 0)
        blob = _measure_blob(rgb[window], lab[window], own, others, reach)
        x0, y0 = window[1].start, window[0].start
        centre_x, centre_y = (blob.x + x0 + 0.5) / unit - 1, (blob.y + y0 + 0.5) / unit - 1
        blobs.append(blob._replace(x=centre_x, y=centre_y, area=blob.area / unit**2))
    return blobs, far


def _measure_blob(
    rgb: np.ndarray, lab: np.ndarray, own: np.ndarray, others: np.ndarray, reach: int
) -> Blob:
    """Return the blob with the pixels ``own`` (H, W) of a window of the frame, in pixels of the
    window."""
    depth = cv2.distanceTransform(own, cv2.DIST_L2, 3)
    core = depth >= min(4.0, 0.6 * float(depth.max()))
    near = cv2.dilate(own, np.ones((2 * reach + 1, 2 * reach + 1), np.uint8)) > 0
    around = ~near & ~others
    rgb = rgb.astype(np.float32)
    front = np.median(rgb[core], axis=0)
    back = np.median(rgb[around], axis=0) if around.any() else rgb[~near].mean(axis=0)
    axis = front - back
    cover = (rgb - back) @ axis / max(float(axis @ axis), 1.0)
    # The dots of the background move it by up to 0.1: a steeper ramp around one half ignores them.
    cover = np.clip((cover - 0.15) / 0.7, 0, 1).astype(np.float32) * (near & ~others)
    cover[core] = 1.0
    area = float(cover.sum())
    rows, columns = np.indices(cover.shape)
    x, y = float((cover * columns).sum()) / area, float((cover * rows).sum()) / area
    harmonics = _outline_harmonics(cover, x, y)
    return Blob(x, y, area, np.median(lab[core], axis=0), harmonics)


def _outline_harmonics(cover: np.ndarray, x: float, y: float) -> np.ndarray:
    """Return Fourier coefficients of the outline of ``cover`` around (x, y), complex
    (len(ORDERS),)."""
    angles = np.arange(_NUM_ANGLES) * (math.tau / _NUM_ANGLES)
    radii = np.arange(0.5 * _RADIAL_STEP, 0.75 * max(cover.shape) + 2, _RADIAL_STEP)
    map_x = (x + np.cos(angles)[:, None] * radii).astype(np.float32)
    map_y = (y + np.sin(angles)[:, None] * radii).astype(np.float32)
    rays = cv2.remap(cover, map_x, map_y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_CONSTANT)
    return harmonics_of(rays.sum(axis=1))


def harmonics_of(profile: np.ndarray) -> np.ndarray:
    """Return coefficients ``ORDERS`` of a radius profile (N,) over [0, 2 pi), relative to its
    mean."""
    spectrum = np.fft.rfft(profile)
    return spectrum[list(ORDERS)] / max(abs(spectrum[0]), 1e-9)
