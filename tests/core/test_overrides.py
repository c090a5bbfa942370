"""Settings of a run: the table's values, what is typed in their place, and where each is from."""

from __future__ import annotations

import pytest

from kandinsky_core.family.overrides import Override, choose_settings
from kandinsky_core.family.settings import RELEASES, Release

PRO = RELEASES[Release("video_pro", "i2v", 5, "sft")]
LITE_10S = RELEASES[Release("video_lite", "t2v", 10, "sft")]
IMAGE = RELEASES[Release("image_lite", "t2i", None, "sft")]
NANO = RELEASES[Release("nano", "t2v", None, "pretrain")]


def lines(chosen):
    return dict(line.split(": ", 1) for line in chosen.describe().splitlines())


def test_without_anything_typed_it_is_the_smallest_class():
    chosen = choose_settings(PRO)
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
    chosen = choose_settings(PRO, **asked)
    settings = chosen.settings
    assert (settings.shift, settings.rope_scale) == (5, (1, 3.16, 3.16))
    assert (settings.attention, settings.nabla_p) == ("nabla", 0.8)
    assert settings.default_size == (768, 1280)
    assert lines(chosen)["P"] == "0.8 (checkpoint table)"


def test_a_class_that_was_asked_for_wins_over_the_size():
    chosen = choose_settings(PRO, size_class="large", height=512, width=768)
    assert chosen.settings.shift == 5
    assert chosen.settings.default_size == (512, 768)
    assert "not a size it was trained at" in lines(chosen)["width x height"]


def test_typed_values_win_and_say_so():
    overrides = {
        "num_steps": Override(7, "typed here"),
        "shift": Override(3.0, "set before"),
        "rope_scale": Override((1.0, 4.0, 4.0), "typed here"),
        "num_frames": Override(49, "typed here"),
    }
    chosen = choose_settings(LITE_10S, height=512, width=512, overrides=overrides)
    said = lines(chosen)
    assert said["steps"] == "7 (typed here)"
    assert said["shift"] == "3 (set before)"
    assert said["RoPE scale"] == "1, 4, 4 (typed here)"
    assert said["length"] == "49 (typed here, not a length it was trained at)"
    assert said["width x height"] == "512 x 512 (typed here)"
    assert said["cfg"] == "5 (checkpoint table)"
    assert said["P"] == "0.9 (checkpoint table)"
    assert said["negative prompt"].startswith("Static, 2D cartoon")


def test_every_size_and_length_it_was_trained_at_is_shown():
    said = lines(choose_settings(LITE_10S))
    assert said["trained sizes"] == "768 x 512, 512 x 768, 512 x 512 (checkpoint table)"
    assert said["trained lengths"] == "241 (checkpoint table)"
    said = lines(choose_settings(NANO, size_class="large"))
    assert said["trained sizes"] == "128 x 128, 256 x 256 (checkpoint table)"
    assert said["trained lengths"] == "1, 17, 25 (checkpoint table)"
    assert said["length"] == "17 (checkpoint table)"
    assert lines(choose_settings(IMAGE))["trained sizes"].startswith("1024 x 1024, 1280 x 768, ")


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
    assert choose_settings(settings, orientation=orientation).settings.default_size == size


def test_an_orientation_that_was_not_trained_is_named():
    chosen = choose_settings(NANO, orientation="portrait")
    assert chosen.settings.default_size == (128, 128)
    assert "no portrait size" in lines(chosen)["width x height"]


@pytest.mark.parametrize(
    ("settings", "asked", "words"),
    [
        (LITE_10S, {"size_class": "large"}, r"size_class: .* around 768x512, found large; .* auto"),
        (PRO, {"width": 768}, "width is given without height"),
        (PRO, {"height": 520, "width": 768}, "width, height, length: .*height 520 .* 512 and 528"),
        (LITE_10S, {"height": 528, "width": 768}, "multiple of 128 .* 512 and 640"),
        (PRO, {"overrides": {"num_frames": Override(120, "")}}, "117 and 121"),
        (IMAGE, {"overrides": {"num_frames": Override(5, "")}}, "length: .* images, found 5"),
        (PRO, {"overrides": {"rope_scale": Override((1, -1, -1), "")}}, "rope_scale is"),
    ],
)
def test_what_does_not_fit_is_one_sentence(settings, asked, words):
    with pytest.raises(ValueError, match=words):
        choose_settings(settings, **asked)
