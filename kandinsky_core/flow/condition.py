"""What the network sees beside the noisy latents: nothing, given frames, or a source image.

All latents here are in model space. Source: kandinskylab/kandinsky-5 (commit 6e2a805), its
image-to-video and image-to-image generation, where one first frame is given. Several first frames
and given last frames are this project's: the weights were not trained for them.
Letters: B batch, C channels, T H W latent grid; G given latent frames.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

START_FRAMES = 4
"""Latent frames at the start of a clip that normalisation touches."""
REFERENCE_FRAMES = 5
"""Latent frames after them that it takes statistics from."""
MEAN_CHANGE = (-0.05, 0.1)
"""How far a frame's mean may move."""
STD_CHANGE = (-0.1, 0.25)
"""How far a frame's standard deviation may move."""
MIN_STD = 1e-4
"""What a frame is divided by at least."""


@dataclass(frozen=True)
class VisualCondition:
    """Frames that the result starts from or ends in, or an image that it is edited from."""

    first_frame: Tensor | None = None
    """Encoded image or clip (B or 1, C, G, H, W) that the first G latent frames must equal."""
    source: Tensor | None = None
    """Encoded image (B or 1, C, T, H, W) given to an edit model."""
    last_frame: Tensor | None = None
    """Encoded frames (B or 1, C, G, H, W) that the last G latent frames must equal."""

    def impose(self, x_t: Tensor) -> Tensor:
        """Put the given frames into x_t (B, C, T, H, W), at whatever time; a copy if it changes."""
        parts = [x_t[:, :, self._made(x_t)]]
        if self.first_frame is not None:
            parts.insert(0, self.first_frame)
        if self.last_frame is not None:
            parts.append(self.last_frame)
        if len(parts) == 1:
            return x_t
        return torch.cat([part.to(x_t).expand(len(x_t), -1, -1, -1, -1) for part in parts], dim=2)

    def _made(self, x_t: Tensor) -> slice:
        """Return the latent frames of x_t that are not given.

        Raises:
            ValueError: None are left.
        """
        given = [
            0 if part is None else part.shape[2] for part in (self.first_frame, self.last_frame)
        ]
        if sum(given) and sum(given) >= x_t.shape[2]:
            raise ValueError(
                f"{sum(given)} latent frames are given and the clip has {x_t.shape[2]}: nothing is "
                "left to make; ask for a longer clip"
            )
        return slice(given[0], x_t.shape[2] - given[1])

    def network_input(self, x_t: Tensor, visual_cond: bool) -> Tensor:
        """Join what the network takes in channels.

        Args:
            x_t: Noisy latents (B, C, T, H, W), the given frames already imposed.
            visual_cond: Whether the network has condition and mask channels.

        Returns:
            (B, 2C + 1, T, H, W) with visual_cond, else x_t. For given frames the condition
            channels stay zero, as the network was trained, and only the mask tells.

        Raises:
            ValueError: If there is a condition but the network has no channels for it.
        """
        if not visual_cond:
            if any(each is not None for each in (self.first_frame, self.source, self.last_frame)):
                raise ValueError(
                    "this model makes images from text only and has no input for an image; "
                    "use an image-to-video or image-edit checkpoint"
                )
            return x_t
        mask = torch.ones_like(x_t[:, :1])
        if self.source is not None:
            return torch.cat([x_t, self.source.to(x_t).expand_as(x_t), mask], dim=1)
        mask[:, :, self._made(x_t)] = 0
        condition = torch.zeros_like(x_t)
        return torch.cat([x_t, condition, mask], dim=1)


def normalize_first_frames(latents: Tensor) -> Tensor:
    """Pull the statistics of the first frames towards those of the frames after them.

    An imposed first frame leaves its neighbours slightly off in mean and spread, which shows as
    a mesh. Each of the first four latent frames is moved to the mean and standard deviation of
    the five that follow, by no more than `MEAN_CHANGE` and `STD_CHANGE`.

    Differs from diffusers, which pools the four frames; the official code treats each alone.
    Clips of four latent frames or fewer have nothing to refer to and are returned unchanged, and
    a frame of one value only moves; both give NaN in either.

    Args:
        latents: Clip (B, C, T, H, W) in model space.

    Returns:
        Clip of the same shape, or the given one if it is too short.
    """
    if latents.shape[2] <= START_FRAMES:
        return latents
    start = latents[:, :, :START_FRAMES]
    reference = latents[:, :, START_FRAMES : START_FRAMES + REFERENCE_FRAMES]
    std, mean = torch.std_mean(start, dim=(1, 3, 4), keepdim=True)  # (B, 1, T, 1, 1)
    reference_std, reference_mean = torch.std_mean(reference, dim=(1, 2, 3, 4), keepdim=True)
    new_mean = reference_mean.clamp(mean + MEAN_CHANGE[0], mean + MEAN_CHANGE[1])
    new_std = reference_std.clamp(std + STD_CHANGE[0], std + STD_CHANGE[1])
    normalized = (start - mean) / std.clamp(min=MIN_STD) * new_std + new_mean
    return torch.cat([normalized, latents[:, :, START_FRAMES:]], dim=2)
