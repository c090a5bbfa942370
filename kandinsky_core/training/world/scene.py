"""What a synthetic scene is: its tables, frozen dataclasses and laws of motion.

Coordinates are world units: the frame at rest spans [-1, 1] on both axes, x to the right and y
downwards, so one unit is half the frame whatever its size in pixels. Time runs from 0 to 1 over the
clip whatever its number of frames. The tables hold nothing that cannot be told apart by looking:

* Shapes have about equal areas, and the star is fat, so that eight-fold compression keeps them.
* Rotation is clockwise over five sixths of the angle after which the shape looks the same again
  (100 degrees for the triangle, 75 for the square, 60 for the star): the last frame shows a turned
  shape, and a quarter of the way (one latent frame) is far below half that angle, where the
  direction would become ambiguous. A circle has no such angle and never rotates. An orbit is one
  turn, clockwise.
* The camera moves only over objects that stand still in the world; the textured background tells a
  pan from an object's motion and a zoom from growth.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

Color = tuple[int, int, int]

COLORS: dict[str, Color] = {
    "red": (222, 42, 46),
    "orange": (247, 140, 30),
    "yellow": (252, 222, 52),
    "green": (46, 166, 72),
    "cyan": (54, 208, 222),
    "blue": (44, 88, 222),
    "purple": (136, 54, 186),
    "pink": (248, 128, 190),
}
"""Fill colours of the objects, RGB."""

BACKGROUNDS: dict[str, Color] = {
    "white": (238, 236, 230),
    "beige": (212, 194, 164),
    "gray": (142, 145, 150),
    "brown": (104, 80, 66),
    "navy": (40, 50, 88),
    "black": (34, 34, 38),
}
"""Base colours of the backgrounds, RGB: muted, far from every object colour."""

SIZES: dict[str, float] = {"small": 0.24, "medium": 0.33, "large": 0.45}
"""Radius of a circle of that size, world units (15, 21 and 29 pixels at 128)."""

MOTIONS: tuple[str, ...] = (
    "still", "left", "right", "up", "down", "diagonal",
    "grow", "shrink", "rotate", "orbit", "bounce",
)  # fmt: skip
"""Motions in the world; a camera move is not one of them."""

CAMERAS: tuple[str, ...] = ("still", "pan_left", "pan_right", "zoom_in", "zoom_out")
"""Camera moves. The camera itself moves: a pan to the right takes the picture to the left."""

MOTION_SIZES: dict[str, tuple[str, ...]] = {
    "grow": ("small", "medium"),
    "shrink": ("medium", "large"),
    "orbit": ("small", "medium"),
}
"""Starting sizes of the motions that do not fit every size."""


class ShapeGeometry(NamedTuple):
    """Outline of a shape of size 1."""

    radius: float
    """Distance of the outermost points from the centre."""
    symmetry: float
    """Angle in radians after which it looks the same; 0 for any angle."""
    area: float
    """Area of the outline."""


STAR_INNER = 0.5
"""Inner over outer radius of the star (the sharp pentagram has 0.38)."""

SHAPES: dict[str, ShapeGeometry] = {
    "circle": ShapeGeometry(1.0, 0.0, math.pi),
    "square": ShapeGeometry(1.2, math.tau / 4, 2 * 1.2**2),
    "triangle": ShapeGeometry(1.35, math.tau / 3, 0.75 * math.sqrt(3) * 1.35**2),
    "star": ShapeGeometry(1.35, math.tau / 5, 5 * STAR_INNER * math.sin(math.pi / 5) * 1.35**2),
}

GROW_SCALE, SHRINK_SCALE = 1.7, 0.6
"""Scale at the end of the clip, 1 at its start."""

ROTATION_SHARE = 5 / 6
"""Rotation over the clip as a share of the symmetry angle."""

TRAVEL: dict[str, float] = {
    "left": 0.6, "right": 0.6, "up": 0.6, "down": 0.6,
    "bounce": 0.6, "diagonal": 0.72, "orbit": 0.38,
}  # fmt: skip
"""Typical length of the path (bounce: of its fall, orbit: its radius), world units."""

PAN, ZOOM = 0.42, 1.4
"""Way and magnification of the camera over the clip."""

MARGIN = 0.03
"""Least distance of an object from the edge of the frame, world units."""

GAP = 0.1
"""Least distance of the circles around two objects, world units."""

_DIRECTIONS = {"left": (-1.0, 0.0), "right": (1.0, 0.0), "up": (0.0, -1.0), "down": (0.0, 1.0)}


@dataclass(frozen=True)
class ObjectSpec:
    """One object and its motion; ``dataclasses.replace`` edits it."""

    shape: str
    color: str
    size: str
    motion: str = "still"
    x: float = 0.0
    """Centre at the start of the clip, world units."""
    y: float = 0.0
    travel: float = 0.0
    """Length of the path (see ``TRAVEL``), world units; motions in place ignore it."""
    heading: float = 0.0
    """Radians clockwise from the x axis: where a diagonal leads, where an orbit starts."""

    def __post_init__(self) -> None:
        for value, table, name in (
            (self.shape, SHAPES, "shape"),
            (self.color, COLORS, "color"),
            (self.size, SIZES, "size"),
            (self.motion, MOTIONS, "motion"),
        ):
            if value not in table:
                raise ValueError(f"Unknown {name} {value!r}; choose one of {', '.join(table)}.")
        if self.motion == "rotate" and self.shape == "circle":
            raise ValueError("A circle cannot rotate visibly; choose another shape or motion.")

    @property
    def radius(self) -> float:
        """Distance of the outermost points from the centre at the start, world units."""
        return SIZES[self.size] * SHAPES[self.shape].radius


@dataclass(frozen=True)
class Scene:
    """A background, a camera move and the objects, in drawing order."""

    background: str
    camera: str = "still"
    objects: tuple[ObjectSpec, ...] = ()

    def __post_init__(self) -> None:
        if self.background not in BACKGROUNDS:
            raise ValueError(
                f"Unknown background {self.background!r}; choose one of {', '.join(BACKGROUNDS)}."
            )
        if self.camera not in CAMERAS:
            raise ValueError(f"Unknown camera {self.camera!r}; choose one of {', '.join(CAMERAS)}.")


class Pose(NamedTuple):
    """Where an object is; each field a float or an array over time."""

    x: np.ndarray
    y: np.ndarray
    scale: np.ndarray
    angle: np.ndarray
    """Radians, clockwise on the screen."""


class View(NamedTuple):
    """What the camera shows: screen = (world - centre) * zoom."""

    x: np.ndarray
    zoom: np.ndarray


def frame_times(num_frames: int) -> np.ndarray:
    """Return times in [0, 1] of the frames of a clip: both ends are shown, one frame shows the
    start."""
    return np.linspace(0.0, 1.0, num_frames) if num_frames > 1 else np.zeros(1)


def poses(spec: ObjectSpec, times: np.ndarray) -> Pose:
    """Return pose in the world of ``spec`` at ``times`` (N,) in [0, 1]."""
    x, y = np.full_like(times, spec.x), np.full_like(times, spec.y)
    scale, angle = np.ones_like(times), np.zeros_like(times)
    motion = spec.motion
    if motion in _DIRECTIONS:
        dx, dy = _DIRECTIONS[motion]
        x, y = x + dx * spec.travel * times, y + dy * spec.travel * times
    elif motion == "diagonal":
        x = x + math.cos(spec.heading) * spec.travel * times
        y = y + math.sin(spec.heading) * spec.travel * times
    elif motion == "grow":
        scale = 1 + (GROW_SCALE - 1) * times
    elif motion == "shrink":
        scale = 1 + (SHRINK_SCALE - 1) * times
    elif motion == "rotate":
        angle = ROTATION_SHARE * SHAPES[spec.shape].symmetry * times
    elif motion == "orbit":
        turn = spec.heading + math.tau * times
        x = x + spec.travel * (np.cos(turn) - math.cos(spec.heading))
        y = y + spec.travel * (np.sin(turn) - math.sin(spec.heading))
    elif motion == "bounce":  # a fall from rest, the floor at half time, and back
        y = y + spec.travel * (1 - np.abs(1 - 2 * times)) ** 2
    return Pose(x, y, scale, angle)


def views(camera: str, times: np.ndarray) -> View:
    """Return the view of the camera at ``times`` (N,) in [0, 1]; every move starts over the frame
    at rest."""
    x, zoom = np.zeros_like(times), np.ones_like(times)
    if camera in ("pan_left", "pan_right"):
        x = (PAN if camera == "pan_right" else -PAN) * times
    elif camera in ("zoom_in", "zoom_out"):
        zoom = (ZOOM if camera == "zoom_in" else 1 / ZOOM) ** times
    return View(x, zoom)


def is_clear(scene: Scene) -> bool:
    """Return whether all objects stay inside the frame and apart from each other throughout the
    clip."""
    times = frame_times(25)
    view = views(scene.camera, times)
    tracks = []
    for spec in scene.objects:
        pose = poses(spec, times)
        x, y = (pose.x - view.x) * view.zoom, pose.y * view.zoom
        radius = spec.radius * pose.scale * view.zoom
        if np.max(np.maximum(np.abs(x), np.abs(y)) + radius) > 1 - MARGIN:
            return False
        tracks.append((x, y, radius))
    for i, (x, y, radius) in enumerate(tracks):
        for other_x, other_y, other_radius in tracks[:i]:
            gap = np.hypot(x - other_x, y - other_y) - radius - other_radius
            if np.min(gap) < GAP:
                return False
    return True
