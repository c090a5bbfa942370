"""Between the core's pixels, (B, 3, F, H, W) floats in [-1, 1], and frames of bytes."""

from __future__ import annotations

import numpy as np
import torch
from einops import rearrange
from torch import Tensor
from torch.nn import functional as F

from ..family.shapes import Size, cover_crop

Frames = np.ndarray
"""uint8 (F, H, W, 3), RGB."""


def to_uint8(pixels: Tensor) -> Frames:
    """Turn pixels into frames of bytes.

    Differs: rounds to the nearest level where the reference truncates (half a level darker on
    average, one level at most).

    Args:
        pixels: One clip (1, 3, F, H, W) or (3, F, H, W), float; values beyond [-1, 1] are cut.

    Returns:
        uint8 (F, H, W, 3), RGB.

    Raises:
        ValueError: The shape is another, or there are several clips.
    """
    if pixels.ndim == 5 and len(pixels) == 1:
        pixels = pixels[0]
    if pixels.ndim != 4 or pixels.shape[0] != 3:
        raise ValueError(
            f"pixels have shape {tuple(pixels.shape)}: expected one clip (1, 3, F, H, W); "
            "convert the clips of a batch one by one."
        )
    levels = ((pixels.detach().float().clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)
    return rearrange(levels, "c f h w -> f h w c").cpu().contiguous().numpy()


def cover(pixels: Tensor, size: Size) -> Tensor:
    """Resize images to cover a size, aspect kept, and cut out the middle.

    Args:
        pixels: (B, C, H, W), float, of any range.
        size: Wanted height and width, pixels.

    Returns:
        (B, C, height, width); where nothing was resized, a view. Values may pass the range of
        `pixels` by rounding.
    """
    crop = cover_crop(tuple(pixels.shape[2:]), size)
    if crop.resized != tuple(pixels.shape[2:]):
        pixels = F.interpolate(pixels, crop.resized, mode="bilinear", antialias=True)
    return pixels[..., crop.top : crop.top + size[0], crop.left : crop.left + size[1]]


def to_pixels(frames: Frames) -> Tensor:
    """Turn frames of bytes into pixels; `to_uint8` of it gives the same bytes.

    Args:
        frames: uint8 (F, H, W, 3) RGB; one image (H, W, 3) is a clip of one frame.

    Returns:
        float32 (1, 3, F, H, W) in [-1, 1].

    Raises:
        ValueError: The frames are not uint8 RGB.
    """
    frames = np.asarray(frames)
    if frames.ndim == 3:
        frames = frames[None]
    if frames.ndim != 4 or frames.shape[-1] != 3 or frames.dtype != np.uint8:
        raise ValueError(
            f"frames have shape {frames.shape} and dtype {frames.dtype}: "
            "expected uint8 (F, H, W, 3) in RGB order."
        )
    pixels = torch.from_numpy(np.ascontiguousarray(frames)).float() / 127.5 - 1
    return rearrange(pixels, "f h w c -> 1 c f h w")
