"""A synthetic world of coloured shapes: scenes, frames, captions, edits and a judge of both."""

from .captions import LANGUAGES, caption, vocabulary, words
from .edits import EDIT_KINDS, Edit, judge_edit, sample_edit, sample_training_edit
from .heldout import HeldOut, heldout_captions, heldout_checksum, is_held_out
from .instructions import EditQuestion, edit_vocabulary, held_out_edits, instruct
from .oracle import MeasuredObject, Measurement, correct, measure
from .render import render
from .sample import sample_scene
from .scene import BACKGROUNDS, CAMERAS, COLORS, MOTIONS, SHAPES, SIZES, ObjectSpec, Scene

__all__ = [
    "BACKGROUNDS", "CAMERAS", "COLORS", "EDIT_KINDS", "LANGUAGES", "MOTIONS", "SHAPES", "SIZES",
    "Edit", "EditQuestion", "HeldOut", "MeasuredObject", "Measurement", "ObjectSpec", "Scene",
    "caption", "correct", "edit_vocabulary", "held_out_edits", "heldout_captions",
    "heldout_checksum", "instruct", "is_held_out", "judge_edit", "measure", "render", "sample_edit",
    "sample_scene", "sample_training_edit", "vocabulary", "words",
]  # fmt: skip
