"""Which combinations training never sees, and the captions that test whether the model can combine.

Two sets, each one seventh of the possibilities, laid out like a Latin square so that every value
occurs about equally often in it and every pair of values stays in training: (shape, colour, motion)
for clips, and (shape, colour, background) for still images. Training rejects a scene that shows
either, so a combination held out for images does not slip in as a video's frame.
"""

from __future__ import annotations

import hashlib
import itertools
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import numpy as np

from .captions import LANGUAGES, Language, caption
from .sample import sample_scene
from .scene import BACKGROUNDS, COLORS, MOTIONS, SHAPES, Scene

HeldOutTask = Literal["t2v", "i2v", "t2i"]

_MODULUS = 7


@dataclass(frozen=True)
class HeldOut:
    """One question of the held-out test."""

    caption: str
    scene: Scene
    """What the caption describes; for image to video its first frame is given."""
    seed: int
    """Seed of the noise from which the answer is generated."""
    language: Language


@lru_cache(maxsize=1)
def held_out_motions() -> frozenset[tuple[str, str, str]]:
    """Return the (shape, color, motion) triples that no training clip shows."""
    triples = itertools.product(enumerate(SHAPES), enumerate(COLORS), enumerate(MOTIONS))
    return frozenset(
        (shape, color, motion)
        for (i, shape), (j, color), (k, motion) in triples
        if (i + 2 * j + 3 * k) % _MODULUS == 0 and (shape, motion) != ("circle", "rotate")
    )


@lru_cache(maxsize=1)
def held_out_images() -> frozenset[tuple[str, str, str]]:
    """Return the (shape, color, background) triples that no training picture shows."""
    triples = itertools.product(enumerate(SHAPES), enumerate(COLORS), enumerate(BACKGROUNDS))
    return frozenset(
        (shape, color, background)
        for (i, shape), (j, color), (k, background) in triples
        if (3 * i + j + 2 * k) % _MODULUS == 0
    )


def is_held_out(scene: Scene) -> bool:
    """Return whether any object of ``scene`` shows a held-out combination, of motion or of
    background."""
    return is_held_out_image(scene) or any(
        (spec.shape, spec.color, spec.motion) in held_out_motions() for spec in scene.objects
    )


def is_held_out_image(scene: Scene) -> bool:
    """Return whether any object of ``scene`` shows a held-out combination with the background."""
    return any(
        (spec.shape, spec.color, scene.background) in held_out_images() for spec in scene.objects
    )


def heldout_captions(
    count: int = 200, *, task: HeldOutTask = "t2v", num_objects: int = 1
) -> list[HeldOut]:
    """Return the first ``count`` questions of the held-out test, the same on every machine.

    Successive questions walk through the motions (images: the backgrounds) evenly, English and
    Russian in turn. The first object of every scene shows a held-out combination. The camera
    stands still.

    Args:
        count: How many.
        task: "t2v" and "i2v" name motions, "t2i" names the background and no motion.
        num_objects: Objects in every scene, 1 to 3.

    Raises:
        ValueError: For an unknown task.
    """
    if task not in ("t2v", "i2v", "t2i"):
        raise ValueError(f"Unknown held-out task {task!r}; choose 't2v', 'i2v' or 't2i'.")
    still = task == "t2i"
    combinations = sorted(held_out_images() if still else held_out_motions())
    groups = {third: [c for c in combinations if c[2] == third] for *_, third in combinations}
    rng = np.random.Generator(np.random.PCG64([_TASK_SEEDS[task], num_objects]))
    questions: list[HeldOut] = []
    for number in range(count):
        # One question of every motion (background) in turn, walking through its combinations.
        turn, place = divmod(number, len(groups))
        group = groups[sorted(groups)[place]]
        shape, color, third = group[turn % len(group)]
        scene = sample_scene(
            rng,
            num_objects=num_objects,
            allow_camera=False,
            shape=shape,
            color=color,
            motion="still" if still else third,
            background=third if still else None,
        )
        # Languages alternate; a combination meets the other one the next time round.
        language = LANGUAGES[(place + turn % len(group) + turn // len(group)) % len(LANGUAGES)]
        text = caption(scene, rng, language, still, with_background=True if still else None)
        questions.append(HeldOut(text, scene, 1000 + number, language))
    return questions


_TASK_SEEDS: dict[HeldOutTask, int] = {"t2v": 11, "i2v": 12, "t2i": 13}


def heldout_checksum() -> str:
    """Return SHA-256 in hexadecimal over 200 captions and seeds of each task and 100 two-object
    ones."""
    digest = hashlib.sha256()
    lists = [heldout_captions(task=task) for task in _TASK_SEEDS]
    for question in itertools.chain(*lists, heldout_captions(100, num_objects=2)):
        digest.update(f"{question.seed}\t{question.caption}\n".encode())
    return digest.hexdigest()
