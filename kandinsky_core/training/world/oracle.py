"""Measures a clip by looking: the objects with shape, colour, size and motion, and the camera.

The oracle knows the world's tables and nothing of the scene. It judges what a model draws, so it
was measured on ground truth (``python -m kandinsky_core.training.world``) and then fixed.
"""

from __future__ import annotations

import itertools
import math
from collections import Counter
from dataclasses import dataclass
from functools import lru_cache

import cv2
import numpy as np

from .camera import name_camera, track_camera
from .render import shape_outline
from .scene import GROW_SCALE, ROTATION_SHARE, SHAPES, SIZES, Scene, frame_times
from .segment import (
    ORDERS,
    Blob,
    find_background,
    find_blobs,
    harmonics_of,
    nearest_color,
    to_lab,
)

UNKNOWN = "unknown"
"""Reported for an outline, a colour or a path that is none of the world's."""

# How far a measured outline may be from the nearest shape's: neighbours among the shapes are 0.07
# apart, strong blur and JPEG artefacts move an outline by up to 0.04, an ellipse of 3:2 by 0.1.
_SHAPE_LIMIT = 0.1


@dataclass(frozen=True)
class Track:
    """Path of an object in the world, camera move removed; arrays over the frames that show it."""

    times: np.ndarray
    x: np.ndarray
    y: np.ndarray
    scale: np.ndarray
    """Radius of the circle of equal size as in ``SIZES``."""
    angle: np.ndarray
    """Radians clockwise since the first frame; zero for a circle."""


@dataclass(frozen=True)
class MeasuredObject:
    """What one object is found to be."""

    shape: str
    color: str
    size: str
    motion: str | None
    """None in a single frame."""
    track: Track
    harmonics: np.ndarray
    """Mean magnitudes of the outline's Fourier coefficients of orders 2 to 6."""
    rgb: tuple[int, int, int]
    """Median fill colour."""


@dataclass(frozen=True)
class Measurement:
    """What a clip is found to show."""

    objects: tuple[MeasuredObject, ...]
    count: int
    background: str
    camera: str | None
    """None in a single frame."""
    views: np.ndarray
    """(F, 3): shift x, shift y and log zoom of the camera against the first frame."""


def measure(frames: np.ndarray) -> Measurement:
    """Measure a clip or a single image.

    Args:
        frames: RGB, uint8 (F, H, W, 3), square.

    Raises:
        ValueError: For another layout or type.
    """
    if frames.ndim != 4 or frames.shape[3] != 3 or frames.shape[1] != frames.shape[2]:
        raise ValueError(f"frames must be square, (F, H, H, 3), got shape {frames.shape}.")
    if frames.dtype != np.uint8:
        raise ValueError(f"frames must be uint8, got {frames.dtype}.")
    sigma = 0.5 * frames.shape[1] / 128  # enough against noise, too little to round a star
    smooth = [cv2.GaussianBlur(frame, (0, 0), sigma).astype(np.float32) for frame in frames]
    labs = [to_lab(frame) for frame in smooth]
    background, background_lab = find_background(np.stack(labs[:: max(1, len(labs) // 4)]))
    found = [find_blobs(rgb, lab, background_lab) for rgb, lab in zip(smooth, labs, strict=True)]
    blobs = [frame_blobs for frame_blobs, _ in found]
    views, camera = np.zeros((len(frames), 3)), None
    if len(frames) > 1:
        gray = np.stack([cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY) for frame in smooth])
        views = track_camera(gray, ~np.stack([far for _, far in found]))
        camera = name_camera(views)
        if camera == "still":
            views = np.zeros_like(views)
    count = _typical_count([len(frame_blobs) for frame_blobs in blobs])
    times = frame_times(len(frames))
    objects = tuple(_identify(track, times, views) for track in _link(blobs, count))
    return Measurement(objects, count, background, camera, views)


def _typical_count(counts: list[int]) -> int:
    """Return the most frequent number of objects; of equally frequent ones the larger."""
    votes = Counter(counts)
    return max(votes, key=lambda count: (votes[count], count))


def _link(blobs: list[list[Blob]], count: int) -> list[list[tuple[int, Blob]]]:
    """Follow ``count`` objects through the frames that show as many: lists of (frame, blob)."""
    if count == 0:
        return []
    tracks: list[list[tuple[int, Blob]]] = []
    for index, candidates in enumerate(blobs):
        if len(candidates) < count:
            continue
        if not tracks:
            tracks = [[(index, blob)] for blob in candidates[:count]]
            continue
        last = [track[-1][1] for track in tracks]
        best = min(
            itertools.permutations(candidates, count),
            key=lambda order: sum(_step(a, b) for a, b in zip(last, order, strict=True)),
        )
        for track, blob in zip(tracks, best, strict=True):
            track.append((index, blob))
    return tracks


def _step(a: Blob, b: Blob) -> float:
    """Return how unlikely it is that the same object looks like ``a`` and then ``b``."""
    return math.hypot(a.x - b.x, a.y - b.y) + float(np.linalg.norm(a.lab - b.lab)) / 50


def _identify(
    found: list[tuple[int, Blob]], times: np.ndarray, views: np.ndarray
) -> MeasuredObject:
    """Name the object that ``found`` shows."""
    frames = np.array([index for index, _ in found])
    harmonics = np.stack([blob.harmonics for _, blob in found])
    magnitudes = np.abs(harmonics).mean(axis=0)
    shape = _nearest_shape(magnitudes)
    zoom = np.exp(views[frames, 2])
    x = (np.array([blob.x for _, blob in found]) - views[frames, 0]) / zoom
    y = (np.array([blob.y for _, blob in found]) - views[frames, 1]) / zoom
    area = np.array([blob.area for _, blob in found]) / zoom**2
    geometry = SHAPES.get(shape, SHAPES["circle"])
    angle = _turn(geometry.symmetry, harmonics)
    track = Track(times[frames], x, y, np.sqrt(area / geometry.area), angle)
    start = float(track.scale[:2].mean())
    size = min(SIZES, key=lambda name: abs(math.log(SIZES[name] / start)))
    lab = np.median([blob.lab for _, blob in found], axis=0)
    red, green, blue = np.round(
        255 * cv2.cvtColor(lab[None, None].astype(np.float32), cv2.COLOR_Lab2RGB)[0, 0]
    ).astype(int)
    motion = _name_motion(track, geometry.symmetry) if len(times) > 1 else None
    rgb = (int(red), int(green), int(blue))
    color = nearest_color(lab) or UNKNOWN
    return MeasuredObject(shape, color, size, motion, track, magnitudes, rgb)


@lru_cache(maxsize=1)
def _shape_templates() -> dict[str, np.ndarray]:
    """Return the magnitudes of the outline harmonics of the exact shapes."""
    angles = np.arange(720) * (math.tau / 720)
    rays = np.stack([np.cos(angles), np.sin(angles)], axis=1)
    templates = {}
    for shape in SHAPES:
        corners = shape_outline(shape)
        edges = np.roll(corners, -1, axis=0) - corners
        # Ray t * d meets the edge p + s * e where t = cross(p, e) / cross(d, e), 0 <= s <= 1.
        across = rays[:, None, 0] * edges[:, 1] - rays[:, None, 1] * edges[:, 0]
        with np.errstate(divide="ignore", invalid="ignore"):
            reach = (corners[:, 0] * edges[:, 1] - corners[:, 1] * edges[:, 0]) / across
            along = (corners[:, 0] * rays[:, None, 1] - corners[:, 1] * rays[:, None, 0]) / across
        hit = (along >= -1e-9) & (along <= 1 + 1e-9) & (reach > 0)
        templates[shape] = np.abs(harmonics_of(np.where(hit, reach, 0.0).max(axis=1)))
    return templates


def _nearest_shape(magnitudes: np.ndarray) -> str:
    templates = _shape_templates()
    distances = {
        shape: float(np.linalg.norm(template - magnitudes)) for shape, template in templates.items()
    }
    nearest = min(distances, key=lambda shape: distances[shape])
    return nearest if distances[nearest] < _SHAPE_LIMIT else UNKNOWN


def _turn(symmetry: float, harmonics: np.ndarray) -> np.ndarray:
    """Return rotation since the first frame, radians clockwise (N,); zeros without a symmetry
    angle."""
    if symmetry == 0:
        return np.zeros(len(harmonics))
    order = round(math.tau / symmetry)
    phase = np.unwrap(np.angle(harmonics[:, ORDERS.index(order)]))
    return -(phase - phase[0]) / order


def _name_motion(track: Track, symmetry: float) -> str:
    """Return the motion that a track shows: the strongest of way, growth and turn by their usual
    sizes."""
    ends = min(2, len(track.x))
    net_x = float(track.x[-ends:].mean() - track.x[:ends].mean())
    net_y = float(track.y[-ends:].mean() - track.y[:ends].mean())
    range_x, range_y = float(np.ptp(track.x)), float(np.ptp(track.y))
    span = max(range_x, range_y)
    growth = math.log(float(track.scale[-ends:].mean() / track.scale[:ends].mean()))
    turn = float(track.angle[-1]) / (ROTATION_SHARE * symmetry) if symmetry else 0.0
    strengths = {
        "way": span / 0.5,
        "growth": abs(growth) / math.log(GROW_SCALE),
        "turn": abs(turn),
    }
    strongest = max(strengths, key=lambda name: strengths[name])
    if strengths[strongest] < 0.4:
        return "still"
    if strongest == "growth":
        return "grow" if growth > 0 else "shrink"
    if strongest == "turn":
        return "rotate"
    if math.hypot(net_x, net_y) < 0.5 * span:  # it came back
        if min(range_x, range_y) > 0.5 * span:
            return "orbit"
        return "bounce" if range_y > range_x else UNKNOWN
    # Eight sectors of 45 degrees, clockwise from the right.
    sector = round(math.atan2(net_y, net_x) / (math.pi / 4)) % 8
    return {0: "right", 2: "down", 4: "left", 6: "up"}.get(sector, "diagonal")


def correct(measurement: Measurement, scene: Scene) -> dict[str, bool]:
    """Judge a clip against the scene it should show.

    Objects are matched so that as many shapes and colours as possible agree; a row is right when it
    is right for every object of the scene.

    Returns:
        Rows color, shape, motion, size, count, background, camera, and all (colour, shape and
        motion together). A single image has no rows motion and camera.
    """
    rows = ("shape", "color", "motion", "size")
    wanted, found = scene.objects, measurement.objects
    num = min(len(wanted), len(found))
    matched = (
        zip(expected, order, strict=True)
        for expected in itertools.combinations(wanted, num)
        for order in itertools.permutations(found, num)
    )
    best = max(
        (
            [[getattr(a, row) == getattr(b, row) for row in rows] for a, b in pairs]
            for pairs in matched
        ),
        key=lambda hits: (sum(a and b for a, b, *_ in hits), sum(map(sum, hits))),
    )
    missing = len(wanted) > num
    result = {
        row: not missing and all(hits[index] for hits in best) for index, row in enumerate(rows)
    }
    result["count"] = measurement.count == len(wanted)
    result["background"] = measurement.background == scene.background
    if measurement.camera is None:
        del result["motion"]
    else:
        result["camera"] = measurement.camera == scene.camera
    judged = [row for row in ("color", "shape", "motion") if row in result]
    result["all"] = all(result[row] for row in judged)
    return result
