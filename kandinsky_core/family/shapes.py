"""Pixels, latents, tokens and tiles: all geometry, and every error about a size.

    pixels (F, height, width) --VAE--> latents (T, H, W) --patch--> tokens --tile--> blocks

A causal video VAE keeps the first frame and joins every four after it, so F = 4 (T - 1) + 1.
Sizes are (height, width) pairs in pixels throughout.
Source of the resizing rules: kandinskylab/kandinsky-5, commit e8b398f, `i2v_pipeline.py`
(`resize_image`), `i2i_pipeline.py` (`find_nearest`), `generation_utils.py` (`resize_video`).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

from .config import DiTConfig, ImageVAEConfig, VideoVAEConfig

Size = tuple[int, int]
"""(height, width) in pixels."""


@dataclass(frozen=True)
class Geometry:
    """How one model divides space and time: VAE compression, patch, tile and table length."""

    compression_thw: tuple[int, int, int] = (4, 8, 8)
    """Frames and pixels per latent cell (time: after the first frame)."""
    patch_thw: tuple[int, int, int] = (1, 2, 2)
    """Latent cells per token."""
    tile_thw: tuple[int, int, int] | None = None
    """Tokens per NABLA tile, or None for dense attention."""
    max_grid_thw: tuple[int, int, int] = (128, 128, 128)
    """Most tokens per axis (rows of the rotary tables)."""

    def __post_init__(self) -> None:
        tile_t = self.tile_thw[0] if self.tile_thw else 1
        # the family never joins latent frames, so every clip length of frame_step k + 1 fits
        assert self.patch_thw[0] == tile_t == 1, (self.patch_thw, self.tile_thw)

    @classmethod
    def of(
        cls,
        dit: DiTConfig,
        vae: VideoVAEConfig | ImageVAEConfig,
        tile_thw: tuple[int, int, int] | None = None,
    ) -> Geometry:
        """Return the geometry of a transformer and the VAE it works with."""
        space = vae.spatial_compression
        time = vae.temporal_compression if isinstance(vae, VideoVAEConfig) else 1
        return cls((time, space, space), dit.patch_thw, tile_thw, dit.max_grid_thw)

    @property
    def size_multiple(self) -> Size:
        """What height and width must be multiples of, in pixels."""
        _, tile_h, tile_w = self.tile_thw or (1, 1, 1)
        _, space_h, space_w = self.compression_thw
        _, patch_h, patch_w = self.patch_thw
        return space_h * patch_h * tile_h, space_w * patch_w * tile_w

    @property
    def frame_step(self) -> int:
        """Frames between two clip lengths that fit: num_frames = frame_step k + 1."""
        return self.compression_thw[0]

    def explain_multiple(self, axis: int) -> str:
        """Spell out where the multiple of an axis (1 height, 2 width) comes from."""
        text = f"VAE {self.compression_thw[axis]} x patch {self.patch_thw[axis]}"
        return f"{text} x NABLA tile {self.tile_thw[axis]}" if self.tile_thw else text


RELEASED = Geometry()
"""The geometry of the released models with dense attention."""


@dataclass(frozen=True)
class VideoShape:
    """A clip in pixels; an image is a clip of one frame."""

    num_frames: int
    height: int
    width: int

    def __post_init__(self) -> None:
        for name in ("num_frames", "height", "width"):
            value = getattr(self, name)
            if value < 1:
                raise ValueError(f"{name} is {value}: it must be at least 1.")

    @property
    def size(self) -> Size:
        return self.height, self.width

    def check(self, geometry: Geometry = RELEASED) -> VideoShape:
        """Return the shape itself if a model can make it.

        Raises:
            ValueError: A side or the number of frames does not fit; the sentence names the
                nearest ones that do.
        """
        check_frames(self.num_frames, geometry)
        check_size(self.height, self.width, geometry)
        return self

    def latent_grid(self, geometry: Geometry = RELEASED) -> tuple[int, int, int]:
        """Return latent cells (T, H, W).

        Raises:
            ValueError: The shape does not fit the geometry.
        """
        self.check(geometry)
        time, space_h, space_w = geometry.compression_thw
        return (self.num_frames - 1) // time + 1, self.height // space_h, self.width // space_w

    def latent_shape(
        self,
        channels: int = 16,
        batch: int = 1,
        geometry: Geometry = RELEASED,
    ) -> tuple[int, int, int, int, int]:
        """Return shape (B, C, T, H, W) of the latents.

        Raises:
            ValueError: The shape does not fit the geometry.
        """
        return (batch, channels, *self.latent_grid(geometry))

    def token_grid(self, geometry: Geometry = RELEASED) -> tuple[int, int, int]:
        """Return tokens (T, H, W) of the transformer.

        Raises:
            ValueError: The shape does not fit the geometry.
        """
        t, h, w = _divide(self.latent_grid(geometry), geometry.patch_thw)
        return t, h, w

    def nearest(self, geometry: Geometry = RELEASED) -> VideoShape:
        """Return the nearest shape that fits; ties go to the larger."""
        mult_h, mult_w = geometry.size_multiple
        limit_t, limit_h, limit_w = _limits(geometry)
        step = geometry.frame_step
        return VideoShape(
            _closest(_around(self.num_frames - 1, step, 0, limit_t - 1), self.num_frames - 1) + 1,
            _closest(_around(self.height, mult_h, mult_h, limit_h), self.height),
            _closest(_around(self.width, mult_w, mult_w, limit_w), self.width),
        )


def pixel_shape(
    latent_grid: Sequence[int],
    geometry: Geometry = RELEASED,
) -> VideoShape:
    """Return the clip that latents (T, H, W) decode to; the inverse of `VideoShape.latent_grid`."""
    t, h, w = latent_grid
    time, space_h, space_w = geometry.compression_thw
    return VideoShape((t - 1) * time + 1, h * space_h, w * space_w)


def check_frames(num_frames: int, geometry: Geometry = RELEASED) -> None:
    """Check a clip length.

    Raises:
        ValueError: `num_frames` is not frame_step k + 1, or too long for the rotary table.
    """
    step, limit = geometry.frame_step, _limits(geometry)[0]
    if (num_frames - 1) % step == 0 and 1 <= num_frames <= limit:
        return
    near = _listing(value + 1 for value in _around(num_frames - 1, step, 0, limit - 1))
    raise ValueError(
        f"a length of {num_frames} frames does not fit: it must be {step}k + 1, up to {limit}; "
        f"the nearest that fit: {near}."
    )


def check_size(height: int, width: int, geometry: Geometry = RELEASED) -> None:
    """Check the sides of a frame.

    Raises:
        ValueError: A side is not a multiple of `geometry.size_multiple` or too large for the
            rotary table.
    """
    wrong, limits = [], _limits(geometry)
    names_and_sides = (("height", height), ("width", width))
    for axis, (name, side) in enumerate(names_and_sides, start=1):
        multiple = geometry.size_multiple[axis - 1]
        if side % multiple == 0 and 1 <= side <= limits[axis]:
            continue
        near = _listing(_around(side, multiple, multiple, limits[axis]))
        wrong.append(
            f"{name} {side} must be a multiple of {multiple} ({geometry.explain_multiple(axis)}), "
            f"up to {limits[axis]}; the nearest that fit: {near}"
        )
    if not wrong:
        return
    hint = ""
    if geometry.tile_thw is not None:
        dense = replace(geometry, tile_thw=None)
        if not (height % dense.size_multiple[0] or width % dense.size_multiple[1]):
            hint = " (or use dense attention, which takes this size)"
    raise ValueError(f"size {height}x{width} does not fit: {'; '.join(wrong)}{hint}.")


def frames_for_seconds(
    seconds: float,
    fps: float = 24.0,
    geometry: Geometry = RELEASED,
) -> int:
    """Return the number of frames of a clip that plays for `seconds`: fps x seconds + 1, made to
    fit."""
    if seconds < 0:
        raise ValueError(f"seconds is {seconds}: it must not be negative.")
    step = geometry.frame_step
    return round(seconds * fps / step) * step + 1


def resolve_size(
    height: int | None,
    width: int | None,
    *,
    default: Size,
    geometry: Geometry = RELEASED,
    image_size: Size | None = None,
    area: int | None = None,
    choices: Sequence[Size] | None = None,
) -> Size:
    """Choose the size to generate.

    A size that is given is checked and kept. Otherwise an image decides, by the nearest aspect
    among `choices` (editing) or keeping its aspect at `area` (image to video); without an image
    it is `default`.

    Args:
        height: Pixels, or None to choose.
        width: Pixels, or None to choose.
        default: Size without an image.
        geometry: What must fit.
        image_size: Size of the given image.
        area: Pixels of a frame made from an image.
        choices: The only sizes a model was trained for.

    Returns:
        Height and width in pixels, both fitting `geometry`.

    Raises:
        ValueError: Only one side is given, or the size does not fit.
    """
    if (height is None) != (width is None):
        given, missing = ("height", "width") if width is None else ("width", "height")
        raise ValueError(f"{given} is given without {missing}: give both, or neither to choose.")
    if height is None or width is None:
        if image_size is not None and choices:
            height, width = nearest_aspect(image_size, choices)
        elif image_size is not None and area is not None:
            height, width = fit_area(image_size, area, geometry.size_multiple)
        else:
            height, width = default
    check_size(height, width, geometry)
    return height, width


def fit_area(image_size: Size, area: int, multiple: Size = (16, 16)) -> Size:
    """Return the size of about `area` pixels with the aspect of an image.

    Args:
        image_size: Height and width of the image, pixels.
        area: Wanted height x width, pixels.
        multiple: What height and width must be multiples of.

    Returns:
        Height and width, each rounded to its multiple and at least one multiple.
    """
    height, width = VideoShape(1, *image_size).size
    scale = math.sqrt(area / (height * width))
    mult_h, mult_w = multiple
    return (
        max(1, round(height * scale / mult_h)) * mult_h,
        max(1, round(width * scale / mult_w)) * mult_w,
    )


def nearest_aspect(image_size: Size, choices: Sequence[Size]) -> Size:
    """Return the size among `choices` whose height / width is nearest to the image's; first on
    ties."""
    height, width = VideoShape(1, *image_size).size
    return min(choices, key=lambda size: abs(size[0] / size[1] - height / width))


class CoverCrop(NamedTuple):
    """Resize an image to `resized`, then cut the wanted size out at (`top`, `left`), pixels."""

    resized: Size
    top: int
    left: int


def cover_crop(image_size: Size, size: Size) -> CoverCrop:
    """Work out how to fill `size` with an image: aspect kept, middle kept, nothing padded."""
    height, width = VideoShape(1, *image_size).size
    target_h, target_w = VideoShape(1, *size).size
    # integers, because height / (height / target) may round to one pixel too few
    if height * target_w <= width * target_h:
        resized = target_h, width * target_h // height
    else:
        resized = height * target_w // width, target_w
    return CoverCrop(resized, (resized[0] - target_h) // 2, (resized[1] - target_w) // 2)


def _divide(counts: Sequence[int], sizes: Sequence[int]) -> tuple[int, ...]:
    assert all(count % size == 0 for count, size in zip(counts, sizes, strict=True))
    return tuple(count // size for count, size in zip(counts, sizes, strict=True))


def _limits(geometry: Geometry) -> tuple[int, int, int]:
    """Return the most frames, height and width, in pixels, that the rotary tables cover."""
    cells = [m * p for m, p in zip(geometry.max_grid_thw, geometry.patch_thw, strict=True)]
    time, space_h, space_w = geometry.compression_thw
    return (cells[0] - 1) * time + 1, cells[1] * space_h, cells[2] * space_w


def _around(value: int, multiple: int, smallest: int, largest: int) -> list[int]:
    """Return the multiples next to `value` (one if it is a multiple itself) within the limits."""
    largest = largest // multiple * multiple
    below = min(max(value // multiple * multiple, smallest), largest)
    above = min(max(-(-value // multiple) * multiple, smallest), largest)
    return [below] if below == above else [below, above]


def _closest(candidates: Sequence[int], value: int) -> int:
    return min(reversed(candidates), key=lambda candidate: abs(candidate - value))


def _listing(values: Iterable[int]) -> str:
    return " and ".join(str(value) for value in values)
