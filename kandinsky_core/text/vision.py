"""The size in which Qwen2.5-VL looks at a picture.

Source: the rule of Qwen2-VL's image processor in transformers (patches of 14 pixels, merged by 2).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional

SIDE = 28
"""Pixels of a side that become one token."""
# of Qwen2.5-VL's preprocessor_config.json
MIN_IMAGE_PIXELS, MAX_IMAGE_PIXELS = 56 * 56, 12_845_056


def fit_for_qwen(images: Tensor, max_pixels: int = MAX_IMAGE_PIXELS) -> Tensor:
    """Resize pictures to sides that are multiples of 28, as Qwen's own processor would.

    Args:
        images: (B, 3, H, W) uint8, or float in [-1, 1].
        max_pixels: Largest area of the result, in pixels.

    Returns:
        (B, 3, h, w) uint8 on the CPU: bicubic with antialiasing, the aspect nearly kept.
    """
    levels = images.cpu()
    if levels.dtype != torch.uint8:
        levels = ((levels.float() + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)
    size = _qwen_size(images.shape[-2], images.shape[-1], max_pixels)
    if size != tuple(images.shape[-2:]):
        # in 8 bits as the processor does it, which clamps between its two passes
        levels = functional.interpolate(levels, size=size, mode="bicubic", antialias=True)
    return levels


def _qwen_size(height: int, width: int, max_pixels: int) -> tuple[int, int]:
    sides = (height, width)
    rounded = [round(side / SIDE) * SIDE for side in sides]
    if math.prod(rounded) > max_pixels:
        shrink = math.sqrt(height * width / max_pixels)
        rounded = [max(SIDE, math.floor(side / shrink / SIDE) * SIDE) for side in sides]
    elif math.prod(rounded) < MIN_IMAGE_PIXELS:
        grow = math.sqrt(MIN_IMAGE_PIXELS / (height * width))
        rounded = [math.ceil(side * grow / SIDE) * SIDE for side in sides]
    return rounded[0], rounded[1]
