"""The flow-matching objective of pretraining, for video, images, image to video and edits.

Letters: B batch, C channels, T H W latent grid. All latents here are in model space.
Source: arXiv 2511.14993, section 3, and kandinskylab/kandinsky-5 for the conditions.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ..flow import VisualCondition, interpolate, shift_times, velocity_target
from ..text import TextConditioning
from .attention import attend_products
from .data.batch import LatentBatch
from .layout import near_objects

TIME_MEAN, TIME_STD = 0.3, 1.2
"""Of the logit of the times before the shift."""
FOCUS = 5.0
"""How much more errors on and around objects count, where there is little noise."""


def sample_times(count: int, generator: torch.Generator, *, shift: float = 3.0) -> Tensor:
    """Draw times that lean towards noise: logit-normal, then shifted as the sampler's are.

    The draws of a batch are stratified: each falls into its own slice of equal probability, so
    that the loss of a small batch varies less.

    Args:
        count: How many, B.
        generator: Source of randomness.
        shift: Warp towards noise.

    Returns:
        Times (B,) in (0, 1), in random order.
    """
    slices = torch.randperm(count, generator=generator)
    quantiles = (slices + torch.rand(count, generator=generator)) / count
    normal = torch.special.ndtri(quantiles.clamp(1e-5, 1 - 1e-5))
    return shift_times(torch.sigmoid(TIME_MEAN + TIME_STD * normal), shift)


def network_input(x_t: Tensor, first_frames: Tensor, given_first: Tensor) -> Tensor:
    """Return what `VisualCondition` gives the network at inference, chosen row by row.

    Args:
        x_t: (B, C, T, H, W), noisy.
        first_frames: (B, C, 1, H, W), clean.
        given_first: (B,) bool: rows that start from their first frame.

    Returns:
        (B, 2C + 1, T, H, W): x_t with the first frame put in, zeros, and the mask.
    """
    rows = given_first.reshape(-1, 1, 1, 1, 1)
    start = torch.where(rows, first_frames, x_t[:, :, :1])
    mask = torch.zeros_like(x_t[:, :1])
    mask[:, :, :1] = rows.to(mask)
    x = torch.cat([start, x_t[:, :, 1:]], dim=2)  # (B, C, T, H, W)
    return torch.cat([x, torch.zeros_like(x), mask], dim=1)


def flow_loss(
    transformer: Callable[..., Tensor],
    text: TextConditioning,
    batch: LatentBatch,
    generator: torch.Generator,
    *,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """Return squared error of the velocity, weighted by `focus`, over the frames that the model
    makes.

    Args:
        transformer: The network, a `CrossDiT` with visual_cond, or a function that calls one.
        text: Encoded prompts of the batch, with gradients where the encoder is trained too.
        batch: Clips.
        generator: Source of noise and times.
        dtype: In which the large matrices compute.

    Returns:
        Scalar.
    """
    latents = batch.latents
    noise = torch.randn(latents.shape, generator=generator).to(latents)
    t = sample_times(latents.shape[0], generator).to(latents)
    x_t = interpolate(latents, noise, t)
    if batch.sources is None:
        x = network_input(x_t, batch.first_frames, batch.given_first)
    else:
        x = VisualCondition(source=batch.sources).network_input(x_t, visual_cond=True)
    velocity = transformer(
        x.to(dtype),
        t,
        text.tokens,
        text.pooled,
        text.mask,
        rope_scale=batch.rope_scale,
        attend=attend_products,
    )
    error = (velocity.float() - velocity_target(latents, noise)).square()
    layout = batch.layout
    if batch.source_layout is not None:
        layout = torch.cat([layout, batch.source_layout], dim=2)
    weights = focus(layout, t, (latents.shape[3], latents.shape[4]))  # (B, 1, T, H, W)
    weights[:, :, :1] *= (~batch.given_first).reshape(-1, 1, 1, 1, 1).to(weights)
    return (error.mean(dim=1, keepdim=True) * weights).sum() / weights.sum()


def focus(layout: Tensor, t: Tensor, grid_hw: tuple[int, int]) -> Tensor:
    """Return how much the error of each latent counts: objects are a tenth of a frame and all of
    the task.

    Weights that depend on the clean clip move the best prediction towards what weighs more unless
    x_t tells where that is; so they fall to one with the noise.

    Args:
        layout: (B, T, O, E) from `layout.scene_layout`.
        t: (B,) times in [0, 1], 1 being noise.
        grid_hw: Latents per frame.

    Returns:
        (B, 1, T, H, W), at least 1.
    """
    clear = (2 * (1 - t)).clamp(max=1).reshape(-1, 1, 1, 1, 1)
    return 1 + FOCUS * clear * near_objects(layout, grid_hw)
