"""Frames of a scene: anti-aliased shapes over a background of soft dots fixed to the world."""

from __future__ import annotations

import math
from functools import lru_cache

import cv2
import numpy as np

from .scene import BACKGROUNDS, COLORS, SHAPES, SIZES, STAR_INNER, Scene, frame_times, poses, views

# Half-width of the painted world: the widest zoom out shows 1.4, a pan 1.42.
_WORLD = 1.5
_CANVAS_SCALE = 1.5  # canvas pixels per frame pixel, so that a zoom in stays crisp
_SUPERSAMPLE = 4
_SUBPIXEL_BITS = 6
# Dots of 10 to 20 pixels at 128: big enough to come through an eight-fold compression.
_DOT_CONTRAST = 14.0
_DOT_SPACING = 0.42
_DOT_RADII = (0.08, 0.115, 0.15)


def render(scene: Scene, size: int = 128, num_frames: int = 17) -> np.ndarray:
    """Draw a clip of ``scene``.

    Args:
        scene: What to draw.
        size: Width and height in pixels.
        num_frames: Frames over which the whole motion is shown; 1 shows the start.

    Returns:
        RGB frames, uint8 (num_frames, size, size, 3).
    """
    times = frame_times(num_frames)
    view = views(scene.camera, times)
    canvas = _canvas(scene.background, size)
    if scene.camera == "still":
        frames = np.repeat(_shoot(canvas, size, 0.0, 1.0)[None], num_frames, axis=0)
    else:
        shots = [_shoot(canvas, size, x, z) for x, z in zip(view.x, view.zoom, strict=True)]
        frames = np.stack(shots)
    for spec in scene.objects:
        outline = shape_outline(spec.shape) * SIZES[spec.size]
        color = np.array(COLORS[spec.color], dtype=np.float32)
        pose = poses(spec, times)
        for index, frame in enumerate(frames):
            cos, sin = math.cos(pose.angle[index]), math.sin(pose.angle[index])
            centre = np.array([pose.x[index] - view.x[index], pose.y[index]])
            turn = np.array([[cos, sin], [-sin, cos]])
            points = outline @ turn * pose.scale[index] + centre
            _fill(frame, (points * view.zoom[index] + 1) * (size / 2), color)
    return frames


@lru_cache(maxsize=len(SHAPES))
def shape_outline(shape: str) -> np.ndarray:
    """Return the corners of ``shape`` at size 1 around the origin, float64 (N, 2), y downwards,
    upright."""
    radius = SHAPES[shape].radius
    if shape == "circle":
        angles, radii = np.arange(96) * (math.tau / 96), np.full(96, radius)
    elif shape == "square":
        angles, radii = (np.arange(4) + 0.5) * (math.tau / 4), np.full(4, radius)
    elif shape == "triangle":
        angles, radii = np.arange(3) * (math.tau / 3) - math.pi / 2, np.full(3, radius)
    else:
        angles = np.arange(10) * (math.tau / 10) - math.pi / 2
        radii = np.tile([radius, radius * STAR_INNER], 5)
    return np.stack([np.cos(angles) * radii, np.sin(angles) * radii], axis=1)


def _fill(frame: np.ndarray, points: np.ndarray, color: np.ndarray) -> None:
    """Paint the polygon ``points`` (N, 2), in pixels, into ``frame``, its edges by coverage."""
    height, width = frame.shape[:2]
    low = np.floor(points.min(axis=0)).astype(int) - 1
    high = np.ceil(points.max(axis=0)).astype(int) + 1
    x0, y0 = max(int(low[0]), 0), max(int(low[1]), 0)
    x1, y1 = min(int(high[0]), width), min(int(high[1]), height)
    if x0 >= x1 or y0 >= y1:
        return
    mask = np.zeros(((y1 - y0) * _SUPERSAMPLE, (x1 - x0) * _SUPERSAMPLE), np.uint8)
    # Corners lie on pixel edges; OpenCV counts from pixel centres, half a fine pixel further in.
    fine = (points - (x0, y0)) * _SUPERSAMPLE - 0.5
    cv2.fillPoly(
        mask, [np.round(fine * 2**_SUBPIXEL_BITS).astype(np.int32)], 255, shift=_SUBPIXEL_BITS
    )
    cover = cv2.resize(mask, (x1 - x0, y1 - y0), interpolation=cv2.INTER_AREA)
    alpha = cover.astype(np.float32)[..., None] / 255
    patch = frame[y0:y1, x0:x1]
    patch[:] = np.round(patch + (color - patch) * alpha)


def _shoot(canvas: np.ndarray, size: int, x: float, zoom: float) -> np.ndarray:
    """Return the background seen by a camera at ``x`` (world units) with magnification ``zoom``."""
    scale = _CANVAS_SCALE / zoom  # canvas pixels per frame pixel
    middle = canvas.shape[0] / 2
    offset_x = middle + x * _CANVAS_SCALE * size / 2 - (size / 2 - 0.5) * scale - 0.5
    offset_y = middle - (size / 2 - 0.5) * scale - 0.5
    matrix = np.array([[scale, 0, offset_x], [0, scale, offset_y]])
    return cv2.warpAffine(
        canvas, matrix, (size, size), flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    )


@lru_cache(maxsize=32)
def _canvas(background: str, size: int) -> np.ndarray:
    """Return the painted world for frames of ``size`` pixels, uint8 (N, N, 3); always the same
    dots."""
    base = np.array(BACKGROUNDS[background], dtype=np.float32)
    num = 2 * math.ceil(_WORLD * _CANVAS_SCALE * size / 2)
    axis = (np.arange(num) + 0.5 - num / 2) / (_CANVAS_SCALE * size / 2)
    softness = 0.024
    cover = np.zeros((num, num), np.float32)
    rng = np.random.Generator(np.random.PCG64(5))
    cells = np.arange(-math.ceil(_WORLD / _DOT_SPACING), math.ceil(_WORLD / _DOT_SPACING) + 1)
    for row in cells:
        for column in cells:
            # Staggered rows with a little jitter: no shift or zoom maps the pattern onto itself.
            jitter = (rng.random(2) - 0.5) * 0.3
            x = (column + 0.5 * (row % 2) + jitter[0]) * _DOT_SPACING
            y = (row + jitter[1]) * _DOT_SPACING
            radius = _DOT_RADII[int(rng.integers(len(_DOT_RADII)))]
            near_x = np.flatnonzero(np.abs(axis - x) < radius + 4 * softness)
            near_y = np.flatnonzero(np.abs(axis - y) < radius + 4 * softness)
            if not near_x.size or not near_y.size:
                continue
            distance = np.hypot(axis[near_x][None] - x, axis[near_y][:, None] - y)
            dot = 1 / (1 + np.exp((distance - radius) / (softness / 2)))
            window = np.ix_(near_y, near_x)
            cover[window] = np.maximum(cover[window], dot)
    tint = _DOT_CONTRAST if base.mean() < 128 else -_DOT_CONTRAST
    return np.clip(np.round(base + tint * cover[..., None]), 0, 255).astype(np.uint8)
