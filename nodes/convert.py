"""IMAGE tensors (B, H, W, 3 in 0..1) and LATENT dictionaries <-> the core's tensors.

Letters: B batch, C channels, F frames, H W pixels.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import torch
from einops import rearrange
from torch import Tensor

from ..kandinsky_core.video import cover


def fill_size(image: Tensor, height: int, width: int) -> Tensor:
    """Resize images to fill a size, aspect kept and the middle cut out.

    Args:
        image: IMAGE (B, H, W, 3 or 4) in 0..1; an alpha channel is dropped.
        height: Wanted height, pixels.
        width: Wanted width, pixels.

    Returns:
        IMAGE (B, height, width, 3) in 0..1.
    """
    pixels = rearrange(image[..., :3], "b h w c -> b c h w")
    return rearrange(cover(pixels, (height, width)), "b c h w -> b h w c").clamp(0, 1)


def to_unit_range(image: Tensor) -> Tensor:
    """Turn an IMAGE (B, H, W, 3) in 0..1 into pixels (B, 3, H, W) in [-1, 1]."""
    return rearrange(image, "b h w c -> b c h w") * 2 - 1


def pixels_to_image(chunks: Iterable[Tensor], num_frames: int) -> Tensor:
    """Turn pixels, as they come, into one IMAGE, whose memory is taken once.

    Args:
        chunks: Pixels (1, 3, f, H, W), about [-1, 1], of one size.
        num_frames: In all, F.

    Returns:
        IMAGE (F, H, W, 3) in 0..1, fp32 on the CPU.
    """
    image, done = torch.empty(0), 0
    for chunk in chunks:
        frames = rearrange(chunk, "1 c f h w -> f h w c")
        if not done:
            image = torch.empty(num_frames, *frames.shape[1:], dtype=torch.float32)
        part = image[done : done + len(frames)]
        part.copy_(frames).add_(1).div_(2).clamp_(0, 1)
        done += len(frames)
    assert done == num_frames, (done, num_frames)
    return image


def frames_to_image(*frames: np.ndarray) -> Tensor:
    """Turn pictures uint8 (H, W, 3) of one size into an IMAGE (B, H, W, 3) in 0..1."""
    return torch.from_numpy(np.stack(frames)).to(torch.float32) / 255
