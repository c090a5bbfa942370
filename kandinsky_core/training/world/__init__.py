"""A synthetic world of coloured shapes: scenes, their frames, their captions and an oracle that measures clips."""

from .captions import LANGUAGES, caption, vocabulary, words
from .heldout import HeldOut, heldout_captions, heldout_checksum, is_held_out
from .render import render
from .scene import (
    BACKGROUNDS,
    CAMERAS,
    COLORS,
    MOTIONS,
    SHAPES,
    SIZES,
    ObjectSpec,
    Scene,
    sample_scene,
)

__all__ = [
    "BACKGROUNDS", "CAMERAS", "COLORS", "LANGUAGES", "MOTIONS", "SHAPES", "SIZES", "HeldOut", "ObjectSpec", "Scene",
    "caption", "heldout_captions", "heldout_checksum", "is_held_out", "render", "sample_scene", "vocabulary", "words",
]  # fmt: skip
