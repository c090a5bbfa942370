"""Draws random scenes whose objects stay inside the frame and apart from each other."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import TypeVar

import numpy as np

from .scene import (
    BACKGROUNDS,
    CAMERAS,
    COLORS,
    MARGIN,
    MOTION_SIZES,
    MOTIONS,
    SHAPES,
    SIZES,
    TRAVEL,
    ObjectSpec,
    Scene,
    frame_times,
    is_clear,
    poses,
)

T = TypeVar("T")


def pick(rng: np.random.Generator, options: Sequence[T]) -> T:
    """Return a uniformly drawn element of ``options``."""
    return options[int(rng.integers(len(options)))]


def sample_scene(
    rng: np.random.Generator,
    *,
    num_objects: int = 1,
    allow_camera: bool = True,
    camera_share: float = 0.15,
    shape: str | None = None,
    color: str | None = None,
    motion: str | None = None,
    background: str | None = None,
) -> Scene:
    """Draw a random scene whose objects stay inside the frame and apart.

    Args:
        rng: Source of randomness.
        num_objects: 1 to 3; objects of one scene have different colours.
        allow_camera: Whether the camera may move (then every object stands still).
        camera_share: Probability of a moving camera, in [0, 1].
        shape: Shape of the first object; drawn when None, as are the next three.
        color: Colour of the first object.
        motion: Motion of the first object; a given one other than "still" keeps the camera still.
        background: Name of the background.

    Raises:
        ValueError: For another number of objects, an unknown name or a rotating circle.
    """
    if num_objects not in (1, 2, 3):
        raise ValueError(f"num_objects must be 1, 2 or 3, got {num_objects}.")
    camera = "still"
    if allow_camera and motion in (None, "still") and rng.random() < camera_share:
        # Three objects find no room to stay apart and inside under a zoom in.
        moves = [name for name in CAMERAS[1:] if (num_objects, name) != (3, "zoom_in")]
        camera, motion = pick(rng, moves), "still"
    background = background or pick(rng, tuple(BACKGROUNDS))
    while True:
        scene = _try_scene(rng, num_objects, camera, background, (shape, color, motion))
        if scene is not None:
            return scene


def _try_scene(
    rng: np.random.Generator,
    num_objects: int,
    camera: str,
    background: str,
    wanted: tuple[str | None, str | None, str | None],
) -> Scene | None:
    """Return one attempt at placing all objects; None when one finds no room."""
    objects: tuple[ObjectSpec, ...] = ()
    for index in range(num_objects):
        shape, color, motion = wanted if index == 0 else (None, None, None)
        taken = {spec.color for spec in objects}
        color = color or pick(rng, [name for name in COLORS if name not in taken])
        if camera != "still":
            motion = "still"
        if motion is None:
            motion = pick(rng, [m for m in MOTIONS if (shape, m) != ("circle", "rotate")])
        if shape is None:
            shape = pick(rng, [s for s in SHAPES if (s, motion) != ("circle", "rotate")])
        sizes = MOTION_SIZES.get(motion, tuple(SIZES))
        # Several objects need room: smaller sizes and shorter paths, still easy to see.
        crowded = [s for s in sizes if num_objects == 1 or SIZES[s] <= SIZES["medium"]]
        size = crowded[0] if num_objects == 3 else pick(rng, crowded)
        for _ in range(15):
            spec = _place(rng, ObjectSpec(shape, color, size, motion), num_objects)
            if is_clear(Scene(background, camera, (*objects, spec))):
                objects = (*objects, spec)
                break
        else:
            return None
    return Scene(background, camera, objects)


def _place(rng: np.random.Generator, spec: ObjectSpec, num_objects: int) -> ObjectSpec:
    """Return ``spec`` with a random path, its middle drawn over the frame; it may not fit."""
    motion, heading = spec.motion, 0.0
    travel = TRAVEL.get(motion, 0.0) * (0.9 + 0.2 * rng.random())
    if num_objects > 1:
        travel *= 0.75
    if motion == "diagonal":
        heading = math.pi / 4 + math.pi / 2 * int(rng.integers(4))
    elif motion == "orbit":
        heading = math.tau * rng.random()
    spec = replace(spec, travel=round(travel, 4), heading=heading)
    path = poses(spec, frame_times(17))
    room_x = max(0.0, 1 - MARGIN - spec.radius - float(np.ptp(path.x)) / 2)
    room_y = max(0.0, 1 - MARGIN - spec.radius - float(np.ptp(path.y)) / 2)
    x = room_x * (2 * rng.random() - 1) - float(path.x.max() + path.x.min()) / 2
    y = room_y * (2 * rng.random() - 1) - float(path.y.max() + path.y.min()) / 2
    return replace(spec, x=round(x, 4), y=round(y, 4))
