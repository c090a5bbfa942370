"""Presets point into the table of settings and name released files."""

from __future__ import annotations

import pytest

from kandinsky_core.checkpoint.info import facts_in_name
from kandinsky_core.presets import PRESETS
from kandinsky_core.settings import RELEASES

# written out from the published figures: steps, cfg, shift, width, height, frames
FIGURES = {
    "nano video": (16, 4, 3, 128, 128, 17),
    "nano image to video": (16, 4, 3, 128, 128, 17),
    "nano image": (16, 4, 3, 128, 128, 1),
    "Lite 5 s": (50, 5, 5, 768, 512, 121),
    "Lite 10 s": (50, 5, 10, 768, 512, 241),
    "Lite distilled 5 s": (16, 1, 5, 768, 512, 121),
    "Lite distilled 10 s": (16, 1, 10, 768, 512, 241),
    "Lite image to video 5 s": (50, 5, 10, 768, 512, 121),
    "Pro SD 5 s": (50, 5, 5, 768, 512, 121),
    "Pro SD 10 s": (50, 5, 10, 768, 512, 241),
    "Pro HD 5 s": (50, 5, 5, 1280, 768, 121),
    "Pro HD 10 s": (50, 5, 10, 1280, 768, 241),
    "Pro SD image to video 5 s": (50, 5, 10, 768, 512, 121),
    "Pro HD image to video 5 s": (50, 5, 5, 1280, 768, 121),
    "Image": (50, 3.5, 3, 1024, 1024, 1),
    "Edit": (50, 3.5, 3, 1024, 1024, 1),
}


def test_every_preset_has_figures():
    assert set(PRESETS) == set(FIGURES)


@pytest.mark.parametrize("name", PRESETS)
def test_values_are_the_published_ones(name):
    settings = PRESETS[name].choose().settings
    height, width = settings.default_size
    assert (
        settings.num_steps,
        settings.guidance_scale,
        settings.shift,
        width,
        height,
        settings.num_frames,
    ) == FIGURES[name]


@pytest.mark.parametrize("name", PRESETS)
def test_the_file_name_tells_the_same_checkpoint(name):
    release, file_name, _ = PRESETS[name]
    assert release in RELEASES
    if file_name is None:
        assert release.variant == "nano"
        return
    facts = facts_in_name(file_name)
    assert facts["task"] == release.task
    assert facts.get("seconds") == release.seconds
    assert facts.get("stage", "sft") == release.stage
    assert ("pro" in file_name) == (release.variant == "video_pro")
