"""Presets point into the table of settings and name released files."""

from __future__ import annotations

import re

import pytest

from kandinsky_core.checkpoint.info import facts_in_name
from kandinsky_core.family.presets import CLIP, IMAGE_VAE, PRESETS, QWEN, VIDEO_VAE
from kandinsky_core.family.settings import RELEASES

# written out from the published figures: steps, cfg, shift, width, height, frames
FIGURES = {
    "nano video": (16, 4, 3, 128, 128, 17),
    "nano image to video": (16, 4, 3, 128, 128, 17),
    "nano image": (16, 4, 3, 128, 128, 1),
    "nano edit": (16, 4, 3, 128, 128, 1),
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
    "Pro SD distilled 5 s": (16, 1, 5, 768, 512, 121),
    "Pro HD distilled 5 s": (16, 1, 5, 1280, 768, 121),
    "Pro SD distilled image to video 5 s": (16, 1, 5, 768, 512, 121),
    "Pro HD distilled image to video 5 s": (16, 1, 5, 1280, 768, 121),
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
    assert ("pro" in file_name.lower()) == (release.variant == "video_pro")


@pytest.mark.parametrize(
    ("name", "part"),
    [
        ("qwen_2.5_vl_7b.safetensors", QWEN),
        ("qwen2.5-vl-7b-instruct-q4_k_m.gguf", QWEN),
        ("clip_l.safetensors", CLIP),
        ("clip-vit-large-patch14", CLIP),
        ("hunyuan_video_vae_bf16.safetensors", VIDEO_VAE),
        ("hunyuanvideo-vae-fp16.safetensors", VIDEO_VAE),
        ("ae.safetensors", IMAGE_VAE),
        ("flux_vae.safetensors", IMAGE_VAE),
        ("clip_g.safetensors", None),
        ("qwen_2.5_vl_3b.safetensors", None),
        ("qwen_image_vae.safetensors", None),
        ("hunyuanvideo15_vae_fp16.safetensors", None),
        ("flux1-dev.safetensors", None),
        ("wan_2.1_vae.safetensors", None),
    ],
)
def test_parts_are_known_by_their_names_and_others_are_not(name, part):
    parts = (QWEN, CLIP, VIDEO_VAE, IMAGE_VAE)
    assert [each for each in parts if re.match(each.pattern, name)] == ([part] if part else [])
