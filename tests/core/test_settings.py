"""The settings table against the published figures, written out a second time here."""

from __future__ import annotations

import pytest

from kandinsky_core.family.settings import (
    DEFAULT_RELEASES,
    RELEASES,
    Release,
    find_settings,
)
from kandinsky_core.family.shapes import Geometry, VideoShape
from kandinsky_core.family.variants import VARIANTS

R512, R1024 = (1.0, 2.0, 2.0), (1.0, 3.16, 3.16)
DENSE = None

# variant, task, seconds, stages, steps, cfg, then (shift, rope, NABLA's P) for each size class
PUBLISHED = [
    ("video_lite", "t2v", 5, "sft pretrain", 50, 5.0, [(5, R512, DENSE)]),
    ("video_lite", "t2v", 5, "nocfg", 50, 1.0, [(5, R512, DENSE)]),
    ("video_lite", "t2v", 5, "distilled", 16, 1.0, [(5, R512, DENSE)]),
    ("video_lite", "t2v", 10, "sft pretrain", 50, 5.0, [(10, R512, 0.9)]),
    ("video_lite", "t2v", 10, "nocfg", 50, 1.0, [(10, R512, 0.9)]),
    ("video_lite", "t2v", 10, "distilled", 16, 1.0, [(10, R512, 0.9)]),
    ("video_lite", "i2v", 5, "sft", 50, 5.0, [(10, R512, DENSE)]),
    ("video_pro", "t2v", 5, "sft pretrain", 50, 5.0, [(5, R512, DENSE), (5, R1024, 0.8)]),
    ("video_pro", "t2v", 10, "sft pretrain", 50, 5.0, [(10, R512, 0.9), (10, R1024, 0.7)]),
    ("video_pro", "i2v", 5, "sft", 50, 5.0, [(10, R512, DENSE), (5, R1024, 0.8)]),
    ("video_pro", "t2v", 5, "distilled", 16, 1.0, [(5, R512, DENSE), (5, R1024, 0.8)]),
    ("video_pro", "i2v", 5, "distilled", 16, 1.0, [(5, R512, DENSE), (5, R1024, 0.8)]),
    ("image_lite", "t2i", None, "sft pretrain", 50, 3.5, [(3, (1.0, 1.0, 1.0), DENSE)]),
    ("image_edit", "i2i", None, "sft pretrain", 50, 3.5, [(3, (1.0, 1.0, 1.0), DENSE)]),
]
CLASS_512 = {(512, 512), (512, 768), (768, 512)}
CLASS_1024 = {(1024, 1024), (640, 1408), (768, 1280), (896, 1152)}
CLASS_1024 |= {(width, height) for height, width in CLASS_1024}


@pytest.mark.parametrize(
    ("release", "steps", "cfg", "classes"),
    [
        pytest.param(Release(*row[:3], stage), *row[4:], id="-".join(map(str, (*row[:3], stage))))
        for row in PUBLISHED
        for stage in row[3].split()
    ],
)
def test_published_rows(release, steps, cfg, classes):
    settings = RELEASES[release]
    assert find_settings(release) == (settings, release)
    for index, (shift, rope, p) in enumerate(classes):
        assert settings is not None
        assert (settings.num_steps, settings.guidance_scale) == (steps, cfg)
        assert (settings.shift, settings.rope_scale) == (shift, rope)
        assert settings.attention == ("dense" if p is DENSE else "nabla")
        assert p is DENSE or settings.nabla_p == p
        assert settings.sta_window_thw == (11, 3, 3)
        assert settings.tile_thw == (1, 8, 8)
        image = release.seconds is None
        assert set(settings.sizes) == (CLASS_1024 if image or index else CLASS_512)
        assert settings.num_frames == (1 if image else 24 * release.seconds + 1)
        assert settings.negative_prompt.startswith("Static, 2D cartoon") != image
        settings = settings.larger
    assert settings is None


def test_rows_of_the_bundled_family():
    """What its weights are measured with (docs/nano_report.md, docs/nano_edit_report.md)."""
    for task, frames in (("t2v", 17), ("i2v", 17), ("t2i", 1), ("i2i", 1)):
        settings = RELEASES[Release("nano", task, None, "pretrain")]
        for size, rope in ((128, (1, 1, 1)), (256, (1, 2, 2))):
            assert (settings.num_steps, settings.guidance_scale, settings.shift) == (16, 4, 3)
            assert settings.sizes == ((size, size),)
            assert settings.rope_scale == rope
            assert (settings.num_frames, settings.attention) == (frames, "dense")
            assert settings.frame_choices == (1, 17, 25)
            assert settings.tile_thw == (1, 2, 2)
            settings = settings.larger
        assert settings is None


def test_every_row_is_published_or_ours():
    listed = {Release(*row[:3], stage) for row in PUBLISHED for stage in row[3].split()}
    assert {row for row in RELEASES if row.variant not in ("nano", "debug")} == listed


def test_every_trained_size_fits_its_attention():
    for settings in RELEASES.values():
        while settings:
            geometry = settings.geometry(Geometry())
            for size in settings.sizes:
                for num_frames in {settings.num_frames, *settings.frame_choices}:
                    VideoShape(num_frames, *size).check(geometry)
            settings = settings.larger


def test_every_variant_has_a_default():
    assert set(DEFAULT_RELEASES) == set(VARIANTS)
    assert all(release in RELEASES for release in DEFAULT_RELEASES.values())


def test_size_classes():
    pro = RELEASES[Release("video_pro", "t2v", 5, "sft")]
    for size in CLASS_512:
        assert pro.rope_scale_for(*size) == R512
    for size in CLASS_1024:
        assert pro.rope_scale_for(*size) == R1024
        assert pro.for_size(*size).attention == "nabla"
    assert set(pro.all_sizes) == CLASS_512 | CLASS_1024
    lite = RELEASES[Release("video_lite", "t2v", 5, "sft")]
    assert lite.rope_scale_for(1024, 1024) == R512
    nano = RELEASES[DEFAULT_RELEASES["nano"]]
    assert nano.rope_scale_for(128, 128) == (1, 1, 1)
    assert nano.rope_scale_for(256, 256) == (1, 2, 2)
    assert nano.for_size(128, 128) is nano


def test_border_between_size_classes_is_the_geometric_mean_of_their_areas():
    pro = RELEASES[Release("video_pro", "t2v", 5, "sft")]
    # sqrt(512 x 768 x 1024 x 1024) = 642,119, where halfway would be 720,896
    assert pro.for_size(640, 1000) is pro
    assert pro.for_size(640, 1008) is pro.larger
    nano = RELEASES[DEFAULT_RELEASES["nano"]]
    # sqrt(128 x 128 x 256 x 256) = 32,768: the border itself is of the smaller class
    assert nano.for_size(128, 256) is nano
    assert nano.for_size(256, 144) is nano.larger


def test_unreleased_combinations_take_the_nearest_row():
    settings, row = find_settings(Release("video_lite", "i2v", 10, "distilled"))
    assert row == Release("video_lite", "i2v", 5, "sft")
    assert settings is RELEASES[row]
    assert find_settings(Release("video_pro", "t2v", 10, "distilled"))[1].stage == "distilled"
    with pytest.raises(ValueError, match="'video_max' has no settings: expected one of video_lite"):
        find_settings(Release("video_max", "t2v"))
