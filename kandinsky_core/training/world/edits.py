"""Edits of still pictures: what changes, what must stay, and a judge of both.

Training never sees a picture, before or after the edit, with a combination of `heldout`; the test
edits lead to such a combination or start from one.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal, get_args

import numpy as np

from .heldout import held_out_images, is_held_out_image
from .oracle import MeasuredObject, Measurement
from .sample import pick, sample_scene
from .scene import BACKGROUNDS, COLORS, SHAPES, ObjectSpec, Scene, is_clear

EditKind = Literal["recolor", "reshape", "remove", "move", "background"]
EDIT_KINDS: tuple[EditKind, ...] = get_args(EditKind)

DIRECTIONS: dict[str, tuple[float, float]] = {
    "left": (-1.0, 0.0), "right": (1.0, 0.0), "up": (0.0, -1.0), "down": (0.0, 1.0),
}  # fmt: skip
MOVE = 0.6
"""How far an object is moved, world units."""
NEAR = 0.2
"""How far from its place an object may be and count as there, world units."""
OBJECT_SHARES: dict[bool, tuple[float, float, float]] = {
    False: (0.6, 0.35, 0.05),
    True: (0.0, 0.85, 0.15),
}
"""Is something removed? -> shares of pictures with one, two and three objects."""
_ATTRIBUTES = ("shape", "color", "size", "place")


@dataclass(frozen=True)
class Edit:
    """A picture and what it should become; the edited object is the first of the source."""

    kind: EditKind
    source: Scene
    target: Scene
    direction: str | None = None
    """Where a move leads, a key of `DIRECTIONS`."""

    @property
    def subject(self) -> ObjectSpec:
        """The edited object before the edit."""
        return self.source.objects[0]


def sample_edit(
    rng: np.random.Generator,
    kind: EditKind | None = None,
    *,
    combination: tuple[str, str, str] | None = None,
) -> Edit:
    """Draw an edit.

    Args:
        rng: Source of randomness.
        kind: What is done; drawn when None.
        combination: Shape and colour of the edited object, and background: after the edit where it
            changes one of them, else before.
    """
    kind = kind or pick(rng, EDIT_KINDS)
    while True:
        num_objects = 1 + int(rng.choice(3, p=OBJECT_SHARES[kind == "remove"]))
        shape, color, background = combination or (None, None, None)
        scene = sample_scene(
            rng,
            num_objects=num_objects,
            allow_camera=False,
            shape=shape,
            color=color,
            motion="still",
            background=background,
        )
        still = (replace(s, motion="still", travel=0.0, heading=0.0) for s in scene.objects)
        edit = _change(replace(scene, objects=tuple(still)), kind, rng)
        if is_clear(edit.source) and is_clear(edit.target):
            return edit


def _change(scene: Scene, kind: EditKind, rng: np.random.Generator) -> Edit:
    """Make `scene` the end of an edit that changes what a combination names, else its start."""
    subject, *others = scene.objects

    def with_subject(**changes: str | float) -> Scene:
        return replace(scene, objects=(replace(subject, **changes), *others))

    if kind == "recolor":
        taken = {spec.color for spec in scene.objects}
        other = pick(rng, [name for name in COLORS if name not in taken])
        return Edit(kind, with_subject(color=other), scene)
    if kind == "reshape":
        other = pick(rng, [name for name in SHAPES if name != subject.shape])
        return Edit(kind, with_subject(shape=other), scene)
    if kind == "background":
        other = pick(rng, [name for name in BACKGROUNDS if name != scene.background])
        return Edit(kind, replace(scene, background=other), scene)
    if kind == "remove":
        return Edit(kind, scene, replace(scene, objects=tuple(others)))
    direction = pick(rng, tuple(DIRECTIONS))
    x, y = DIRECTIONS[direction]
    moved = with_subject(x=round(subject.x + MOVE * x, 4), y=round(subject.y + MOVE * y, 4))
    return Edit(kind, scene, moved, direction)


def sample_training_edit(rng: np.random.Generator) -> Edit:
    """Draw an edit neither end of which shows a held-out combination."""
    while True:
        edit = sample_edit(rng)
        if not (is_held_out_image(edit.source) or is_held_out_image(edit.target)):
            return edit


def held_out_edit(rng: np.random.Generator, kind: EditKind, number: int) -> Edit:
    """Return an edit of the held-out test.

    Args:
        rng: Source of randomness.
        kind: What is done.
        number: Which of the held-out combinations of shape, colour and background it is about.
    """
    combinations = sorted(held_out_images())
    # a step coprime to their number walks through shapes and backgrounds evenly
    combination = combinations[number * 5 % len(combinations)]
    while True:
        edit = sample_edit(rng, kind, combination=combination)
        changes = kind in ("recolor", "reshape", "background")
        if not (changes and is_held_out_image(replace(edit.source, objects=(edit.subject,)))):
            return edit


def judge_edit(measurement: Measurement, edit: Edit) -> dict[str, bool]:
    """Judge a picture that should be the result of an edit.

    Returns:
        Rows edited (what was asked for happened), kept (all else is as before: shape, colour, size
        and place of every object, their number, the background), and all.
    """
    found = _match(edit.target.objects, measurement.objects)
    right = [
        {name: seen is not None and _same(name, seen, spec) for name in _ATTRIBUTES}
        for spec, seen in zip(edit.target.objects, found, strict=True)
    ]
    counted = measurement.count == len(edit.target.objects)
    background = measurement.background == edit.target.background
    asked = {"recolor": "color", "reshape": "shape", "move": "place"}.get(edit.kind)
    if edit.kind == "remove":
        edited = counted
    elif edit.kind == "background":
        edited = background
    else:
        assert asked is not None
        edited = right[0].pop(asked)
    kept = all(all(rows.values()) for rows in right)
    kept = kept and (background or edit.kind == "background")
    kept = kept and (counted or edit.kind == "remove")
    return {"edited": edited, "kept": kept, "all": edited and kept}


def _same(name: str, seen: MeasuredObject, spec: ObjectSpec) -> bool:
    if name == "place":
        return _distance(seen, spec) < NEAR
    return getattr(seen, name) == getattr(spec, name)


def _distance(seen: MeasuredObject, spec: ObjectSpec) -> float:
    return math.hypot(seen.track.x[0] - spec.x, seen.track.y[0] - spec.y)


def _match(
    wanted: Sequence[ObjectSpec], found: Sequence[MeasuredObject]
) -> list[MeasuredObject | None]:
    """Pair each wanted object with a measured one so that as much as possible agrees."""
    candidates = [*found[:5], *[None] * len(wanted)]

    def likeness(order: tuple[MeasuredObject | None, ...]) -> tuple[int, float]:
        pairs = [(spec, seen) for spec, seen in zip(wanted, order, strict=True) if seen is not None]
        agreeing = sum(_same(n, seen, spec) for spec, seen in pairs for n in _ATTRIBUTES)
        return agreeing, -sum(_distance(seen, spec) for spec, seen in pairs)

    return list(max(itertools.permutations(candidates, len(wanted)), key=likeness))
