"""A batch of latents, as every stage but the autoencoder's takes it.

Letters: B batch, C channels, T H W latent grid, O objects, E entries of a layout.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class LatentBatch:
    """Clips of one shape with what they are conditioned on."""

    latents: Tensor
    """(B, C, T, H, W): what the model learns to make."""
    first_frames: Tensor
    """(B, C, 1, H, W): the first frame encoded alone, as inference encodes a given image."""
    given_first: Tensor
    """(B,) bool: rows of image to video, which see their first frame."""
    prompts: list[str]
    """B captions; an empty one is the null prompt."""
    layout: Tensor
    """(B, T, O, E): see `layout.scene_layout`."""
    rope_scale: tuple[float, float, float] = (1.0, 1.0, 1.0)
    """Divisor of the rotary angles (t, h, w) at this size."""
    sources: Tensor | None = None
    """(B, C, T, H, W): pictures that `latents` are edits of; None for other tasks."""
    source_layout: Tensor | None = None
    """(B, T, O, E) of the sources: what is taken away there matters as much as what comes."""
