"""What is typed, settled with the table's values: which one wins, and where each is from."""

from __future__ import annotations

import pytest

from kandinsky_core.family.settings import RELEASES, Release
from kandinsky_core.family.shapes import RELEASED
from kandinsky_core.family.typed import Typed, settle

PRO = RELEASES[Release("video_pro", "i2v", 5, "sft")]
LITE_10S = RELEASES[Release("video_lite", "t2v", 10, "sft")]
IMAGE = RELEASES[Release("image_lite", "t2i", None, "sft")]
NANO = RELEASES[Release("nano", "t2v", None, "pretrain")]


def choose(settings, **typed):
    return settle(settings, Typed(**({"task": "t2v"} | typed)), RELEASED)


def lines(chosen):
    return dict(line.split(": ", 1) for line in chosen.describe().splitlines())


def test_without_anything_typed_it_is_the_smallest_class():
    chosen = choose(PRO)
    assert (chosen.settings.shift, chosen.settings.rope_scale) == (10, (1, 2, 2))
    assert chosen.settings.default_size == (512, 768)
    assert chosen.settings.larger is None
    said = lines(chosen)
    assert said["shift"] == "10 (checkpoint table)"
    assert said["width x height"] == "768 x 512 (checkpoint table)"
    assert said["attention"] == "dense (checkpoint table)"
    assert "P" not in said


@pytest.mark.parametrize("asked", [{"size_class": "large"}, {"height": 768, "width": 1280}])
def test_the_larger_class_has_its_own_row(asked):
    chosen = choose(PRO, **asked)
    settings = chosen.settings
    assert (settings.shift, settings.rope_scale) == (5, (1, 3.16, 3.16))
    assert (settings.attention, settings.nabla_p) == ("nabla", 0.8)
    assert settings.default_size == (768, 1280)
    assert lines(chosen)["P"] == "0.8 (checkpoint table)"


def test_a_class_that_was_asked_for_wins_over_the_size():
    chosen = choose(PRO, size_class="large", height=512, width=768)
    assert chosen.settings.shift == 5
    assert chosen.settings.default_size == (512, 768)
    assert "not a size it was trained at" in lines(chosen)["width x height"]


def test_typed_values_win_and_say_so():
    typed = Typed(
        height=512, width=512, num_steps=7, rope_scale=(1.0, 4.0, 4.0), num_frames=49, shift=None
    )
    before = {"shift": 3.0, "num_steps": 5}
    chosen = settle(LITE_10S, typed, RELEASED, tasks=("t2v",), before=before)
    said = lines(chosen)
    assert said["steps"] == "7 (typed here)"
    assert said["shift"] == "3 (set on the model before this node)"
    assert said["RoPE scale"] == "1, 4, 4 (typed here)"
    assert said["length"] == "49 (typed here, not a length it was trained at)"
    assert said["width x height"] == "512 x 512 (typed here)"
    assert said["cfg"] == "5 (checkpoint table)"
    assert said["P"] == "0.9 (checkpoint table)"
    assert said["negative prompt"].startswith("Static, 2D cartoon")


def test_every_size_and_length_it_was_trained_at_is_shown():
    said = lines(choose(LITE_10S))
    assert said["trained sizes"] == "768 x 512, 512 x 768, 512 x 512 (checkpoint table)"
    assert said["trained lengths"] == "241 (checkpoint table)"
    said = lines(choose(NANO, size_class="large"))
    assert said["trained sizes"] == "128 x 128, 256 x 256 (checkpoint table)"
    assert said["trained lengths"] == "1, 17, 25 (checkpoint table)"
    assert said["length"] == "17 (checkpoint table)"
    assert lines(choose(IMAGE, task="t2i"))["trained sizes"].startswith("1024 x 1024, 1280 x 768, ")


@pytest.mark.parametrize(
    ("settings", "orientation", "size"),
    [
        (LITE_10S, "landscape", (512, 768)),
        (LITE_10S, "portrait", (768, 512)),
        (LITE_10S, "square", (512, 512)),
        (IMAGE, "auto", (1024, 1024)),
        (IMAGE, "landscape", (768, 1280)),
        (IMAGE, "portrait", (1280, 768)),
    ],
)
def test_orientation_takes_a_trained_size(settings, orientation, size):
    assert choose(settings, orientation=orientation).settings.default_size == size


def test_an_orientation_that_was_not_trained_is_named():
    chosen = choose(NANO, orientation="portrait")
    assert chosen.settings.default_size == (128, 128)
    assert "no portrait size" in lines(chosen)["width x height"]


@pytest.mark.parametrize(("task", "typed"), [("t2i", None), ("t2i", 17), ("i2i", 6), ("t2i", 1)])
def test_an_image_is_one_frame_whatever_is_typed(task, typed):
    chosen = choose(NANO, task=task, num_frames=typed)
    assert chosen.settings.num_frames == 1
    assert (
        lines(chosen)["length"] == f"1 ({'typed here' if typed == 1 else 'an image is one frame'})"
    )


def test_an_image_decides_the_size_that_nobody_typed():
    def size(settings, **typed):
        return settle(settings, Typed(**typed), RELEASED, image_size=(900, 1600)).shape.size

    assert size(PRO) == (464, 832)  # 16 : 9 at 512 x 768 pixels, in multiples of 16
    assert size(PRO, size_class="large") == (768, 1408)  # at 1024 x 1024, in multiples of 128
    assert size(PRO, height=512, width=512) == (512, 512)
    assert size(IMAGE, task="i2i") == (768, 1280)  # of the trained sizes, the nearest in aspect
    assert size(NANO) == (128, 128)  # the only one
    chosen = settle(PRO, Typed(), RELEASED, image_size=(512, 512))
    assert (chosen.task, lines(chosen)["width x height"]) == ("i2v", "624 x 624 (by the image)")


@pytest.mark.parametrize(
    ("settings", "typed", "words"),
    [
        (LITE_10S, {"size_class": "large"}, r"size_class: .* around 768x512, found large; .* auto"),
        (PRO, {"width": 768}, "width is given without height"),
        (PRO, {"height": 520, "width": 768}, "height 520 .* 512 and 528"),
        (LITE_10S, {"height": 528, "width": 768}, "multiple of 128 .* 512 and 640"),
        (PRO, {"num_frames": 120}, "length of 120 frames .* 117 and 121"),
        (PRO, {"num_frames": 0}, "length of 0 frames .* fit: 1"),
        (PRO, {"rope_scale": (1, -1, -1)}, "rope_scale is"),
        (PRO, {"num_steps": 0}, "steps: expected at least 1, found 0"),
        (PRO, {"shift": float("nan")}, "shift is nan: it must be a number above 0"),
        (PRO, {"shift": 0}, "shift is 0"),
        (PRO, {"nabla_p": 0.5}, "P is 0.5 and attention is dense here: choose attention nabla"),
        (LITE_10S, {"nabla_p": 0.5, "attention": "dense"}, "attention is dense here"),
    ],
)
def test_what_does_not_fit_is_one_sentence(settings, typed, words):
    with pytest.raises(ValueError, match=words):
        choose(settings, **typed)


def test_a_task_that_the_model_does_not_know():
    with pytest.raises(ValueError, match="task i2v is not what this model was trained for"):
        settle(PRO, Typed(), RELEASED, tasks=("t2v",), image_size=(512, 512))
    assert settle(PRO, Typed(), RELEASED, tasks=("t2v", "i2v")).task == "t2v"
