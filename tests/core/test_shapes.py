"""Geometry: round trips on awkward sizes, and errors that name sizes that fit."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kandinsky_core.family.config import ImageVAEConfig, VideoVAEConfig
from kandinsky_core.family.shapes import (
    Geometry,
    VideoShape,
    check_frames,
    check_size,
    cover_crop,
    fit_area,
    frames_for_seconds,
    nearest_aspect,
    pixel_shape,
    resolve_size,
)
from kandinsky_core.family.variants import VARIANTS

NABLA = Geometry(tile_thw=(1, 8, 8))
NANO_NABLA = Geometry(tile_thw=(1, 2, 2))
sides = st.integers(1, 4096)
sizes = st.tuples(sides, sides)


@pytest.mark.parametrize(
    ("shape", "latent", "tokens"),
    [
        (VideoShape(121, 512, 768), (31, 64, 96), (31, 32, 48)),
        (VideoShape(241, 512, 768), (61, 64, 96), (61, 32, 48)),
        (VideoShape(121, 768, 1280), (31, 96, 160), (31, 48, 80)),
        (VideoShape(241, 768, 1280), (61, 96, 160), (61, 48, 80)),
    ],
)
def test_released_clips(shape, latent, tokens):
    assert shape.latent_grid() == latent
    assert shape.latent_shape(16, batch=2) == (2, 16, *latent)
    assert shape.token_grid() == tokens


def test_nano_clips_have_tokens_of_sixteen_pixels():
    geometry = Geometry.of(VARIANTS["nano"], VideoVAEConfig(), (1, 2, 2))
    assert VideoShape(25, 256, 256).token_grid(geometry) == (7, 16, 16)
    assert VideoShape(17, 128, 128).token_grid(geometry) == (5, 8, 8)


def test_image_vae_keeps_every_frame():
    geometry = Geometry.of(VARIANTS["image_lite"], ImageVAEConfig())
    assert VideoShape(1, 640, 1408).latent_shape(geometry=geometry) == (1, 16, 1, 80, 176)


@given(st.integers(1, 128), st.integers(1, 128), st.integers(1, 128))
def test_latents_to_pixels_and_back(t, h, w):
    shape = pixel_shape((t, 2 * h, 2 * w))
    assert shape.latent_grid() == (t, 2 * h, 2 * w)
    assert shape.token_grid() == (t, h, w)


@given(
    st.integers(1, 700),
    st.integers(1, 2500),
    st.integers(1, 2500),
    st.sampled_from([Geometry(), NABLA, NANO_NABLA]),
)
def test_nearest_fits_and_nothing_is_nearer(frames, height, width, geometry):
    near = VideoShape(frames, height, width).nearest(geometry)
    assert near.check(geometry) is near
    multiple = {None: 16, (1, 8, 8): 128, (1, 2, 2): 32}[geometry.tile_thw]
    fitting_frames = range(1, 510, 4)
    fitting_sides = range(multiple, 2049, multiple)
    assert abs(near.num_frames - frames) == min(abs(f - frames) for f in fitting_frames)
    assert abs(near.height - height) == min(abs(s - height) for s in fitting_sides)
    assert abs(near.width - width) == min(abs(s - width) for s in fitting_sides)


@given(sizes, st.sampled_from([Geometry(), NABLA, NANO_NABLA]))
def test_sizes_in_an_error_fit(size, geometry):
    try:
        check_size(*size, geometry)
    except ValueError as error:
        listings = re.findall(r"nearest that fit: (\d+)(?: and (\d+))?", str(error))
        assert listings
        for side in [int(side) for listing in listings for side in listing if side]:
            check_size(side, side, geometry)
    else:
        multiple = {None: 16, (1, 8, 8): 128, (1, 2, 2): 32}[geometry.tile_thw]
        assert all(side % multiple == 0 and 1 <= side <= 2048 for side in size)


def test_error_sentences():
    with pytest.raises(ValueError, match=r"length of 120 frames .* 4k \+ 1.*117 and 121"):
        check_frames(120)
    with pytest.raises(ValueError, match=r"length of 513 frames .*up to 509.*fit: 509\."):
        check_frames(513)
    with pytest.raises(ValueError, match="0 frames does not fit"):
        check_frames(0, Geometry(compression_thw=(1, 8, 8)))  # every number is 1 k + 1
    with pytest.raises(ValueError, match=r"height 500 must be a multiple of 16 .*496 and 512"):
        check_size(500, 768)
    with pytest.raises(ValueError, match=r"width 720 .* 128 .*tile 8.*640 and 768.*dense"):
        check_size(512, 720, NABLA)
    with pytest.raises(ValueError) as both:
        check_size(500, 721, NABLA)
    assert "height 500" in str(both.value)
    assert "width 721" in str(both.value)
    assert "dense" not in str(both.value)
    for height, width in ((500, 720), (720, 500)):  # dense attention takes one of the sides alone
        with pytest.raises(ValueError) as one:
            check_size(height, width, NABLA)
        assert "dense" not in str(one.value)
    with pytest.raises(ValueError, match="width is 0"):
        VideoShape(1, 16, 0)


def test_seconds():
    assert [frames_for_seconds(s) for s in (0, 5, 10)] == [1, 121, 241]
    assert all((frames_for_seconds(s / 7) - 1) % 4 == 0 for s in range(80))


@pytest.mark.parametrize(
    ("image", "area", "multiple", "expected"),
    [
        # worked out by hand: side x sqrt(area / (h w)) / multiple, rounded
        ((512, 768), 512 * 768, 16, (512, 768)),
        ((1080, 1920), 512 * 768, 16, (464, 832)),  # 470.3 / 16 = 29.4, 836.1 / 16 = 52.3
        ((1920, 1080), 512 * 768, 16, (832, 464)),
        ((1080, 1920), 1024 * 1024, 128, (768, 1408)),  # 768.0 / 128 = 6.0, 1365.3 / 128 = 10.7
        ((333, 333), 128 * 128, 16, (128, 128)),
        ((1, 4000), 512 * 768, 16, (16, 39664)),  # 9.9 rounds to 1 of 16; 39658.6 / 16 = 2478.7
    ],
)
def test_image_to_video_size(image, area, multiple, expected):
    assert fit_area(image, area, (multiple, multiple)) == expected


def test_image_to_video_size_never_vanishes():
    assert fit_area((1, 100_000), 512 * 768)[0] == 16


@given(sizes)
def test_image_to_video_keeps_area_and_aspect(image):
    height, width = fit_area(image, 512 * 768)
    assert height % 16 == width % 16 == 0
    scale = (512 * 768 / (image[0] * image[1])) ** 0.5
    assert abs(height - image[0] * scale) <= 8.01 or height == 16
    assert abs(width - image[1] * scale) <= 8.01 or width == 16


def test_nearest_aspect_compares_height_over_width():
    choices = ((1024, 1024), (640, 1408), (1408, 640), (768, 1280), (1280, 768))
    assert nearest_aspect((1080, 1920), choices) == (768, 1280)
    assert nearest_aspect((1920, 1080), choices) == (1280, 768)
    assert nearest_aspect((100, 1000), choices) == (640, 1408)
    assert nearest_aspect((7, 7), choices) == (1024, 1024)
    # 300 / 340 = 0.882 is 0.118 from 1 and 0.105 from 0.778; 340 / 300 = 1.133 would be nearest 1
    assert nearest_aspect((300, 340), ((1024, 1024), (896, 1152))) == (896, 1152)


@given(sizes, sizes)
def test_crop_covers_the_target(image, target):
    crop = cover_crop(image, target)
    assert crop.resized[0] >= target[0] and crop.resized[1] >= target[1]
    assert crop.resized[0] == target[0] or crop.resized[1] == target[1]
    assert 0 <= crop.top <= crop.resized[0] - target[0]
    assert 0 <= crop.left <= crop.resized[1] - target[1]
    # the free side keeps the aspect to within the pixel lost by rounding down
    if crop.resized[0] == target[0]:
        assert 0 <= image[1] * target[0] / image[0] - crop.resized[1] < 1.001
    else:
        assert 0 <= image[0] * target[1] / image[1] - crop.resized[0] < 1.001


def test_resolve_size():
    choices = ((1024, 1024), (768, 1280))
    assert resolve_size(256, 320, default=(512, 768)) == (256, 320)
    assert resolve_size(None, None, default=(512, 768)) == (512, 768)
    assert resolve_size(
        None, None, default=(512, 768), image_size=(1000, 1000), area=512 * 768
    ) == (624, 624)
    assert resolve_size(None, None, default=(512, 768), image_size=(9, 16), choices=choices) == (
        768,
        1280,
    )
    with pytest.raises(ValueError, match="height is given without width"):
        resolve_size(512, None, default=(512, 768))
    with pytest.raises(ValueError, match="640 and 768"):
        resolve_size(512, 720, default=(512, 768), geometry=NABLA)
