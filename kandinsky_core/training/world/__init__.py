"""A synthetic world of coloured shapes: scenes, frames, captions and a judge of clips."""

from .captions import LANGUAGES, caption, vocabulary, words
from .heldout import HeldOut, heldout_captions, heldout_checksum, is_held_out
from .oracle import MeasuredObject, Measurement, correct, measure
from .render import render
from .sample import sample_scene
from .scene import BACKGROUNDS, CAMERAS, COLORS, MOTIONS, SHAPES, SIZES, ObjectSpec, Scene

__all__ = [
    "BACKGROUNDS", "CAMERAS", "COLORS", "LANGUAGES", "MOTIONS", "SHAPES", "SIZES", "HeldOut",
    "MeasuredObject", "Measurement", "ObjectSpec", "Scene", "caption", "correct",
    "heldout_captions", "heldout_checksum", "is_held_out", "measure", "render", "sample_scene",
    "vocabulary", "words",
]  # fmt: skip
