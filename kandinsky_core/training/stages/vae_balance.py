"""Gives an autoencoder's latents the axes and scales that diffusion learns best.

What training leaves is an arbitrary basis: channels that mix everything, and beside the few
directions that make the picture as many that hardly change it, at the same variance. A diffusion
model then spends itself on noise that nobody sees. Here the directions are sorted by what they
contribute to the decoded picture, and each gets a variance between equal shares and that
contribution. The change is linear and exact: it goes into the 1 x 1 convolutions around the latent
space, and the decoded picture stays the same.

Letters: B batch, C channels, T h w latent grid.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from einops import rearrange
from torch import Tensor

from ...models import VideoVAE

EXPONENT = 0.5
"""Variance of a direction = its contribution to this power: 0 makes all equal, 1 makes distances
between latents distances between pictures."""
PROBE = 0.15
"""Size of the perturbation that measures how the decoder responds, in deviations of a channel."""


class Basis(NamedTuple):
    """New latents = matrix (latents - mean), channel by channel."""

    mean: Tensor
    """Mean of each channel (C,)."""
    matrix: Tensor
    """Change of basis among channels (C, C), invertible."""


@torch.no_grad()
def find_basis(vae: VideoVAE, clips: Sequence[Tensor], *, seed: int = 0) -> Basis:
    """Measure what the latents of some clips look like and what the decoder makes of them.

    Args:
        vae: A trained autoencoder.
        clips: Pixels (1, 3, F, H, W) in [-1, 1] each.
        seed: Of the perturbations.

    Returns:
        The basis in which latents have zero mean, no correlation, and variances that average 1
        and fall from the first channel to the last.
    """
    generator = torch.Generator().manual_seed(seed)
    latents = [vae.encode(clip) for clip in clips]
    positions = torch.cat([rearrange(z, "b c t h w -> (b t h w) c") for z in latents]).double()
    covariance, mean = torch.cov(positions.T), positions.mean(0)
    values, vectors = torch.linalg.eigh(covariance)
    root = vectors * values.sqrt() @ vectors.T
    response = torch.stack([_response(vae, z, covariance, generator) for z in latents]).mean(0)
    contributions, directions = torch.linalg.eigh(root @ response @ root)
    variances = contributions.clamp(min=contributions[-1] * 1e-6) ** EXPONENT
    variances = variances / variances.mean()
    matrix = variances.sqrt()[:, None] * (directions.T @ torch.linalg.inv(root))
    return Basis(mean.float(), matrix.flip(0).float())


@torch.no_grad()
def change_basis(vae: VideoVAE, basis: Basis) -> None:
    """Make `vae` encode to, and decode from, latents in another basis.

    The posterior's variance becomes the same for all inputs, which training no longer needs.
    """
    channels = vae.config.latent_channels
    quant, post = vae.quant_conv, vae.post_quant_conv
    weight, bias = quant.weight.flatten(1), quant.bias  # (2C, 2C), (2C,)
    spread = basis.matrix.square() @ bias[channels:].exp()
    new_weight = torch.cat([basis.matrix @ weight[:channels], torch.zeros_like(weight[channels:])])
    new_bias = torch.cat([basis.matrix @ (bias[:channels] - basis.mean), spread.log()])
    quant.weight.copy_(new_weight.view_as(quant.weight))
    quant.bias.copy_(new_bias)
    decode = post.weight.flatten(1)  # (C, C)
    post.bias.add_(decode @ basis.mean)
    post.weight.copy_((decode @ torch.linalg.inv(basis.matrix)).view_as(post.weight))


def _response(
    vae: VideoVAE, latents: Tensor, covariance: Tensor, generator: torch.Generator
) -> Tensor:
    """Return the mean squared change of a pixel by white noise in the channels, as a form (C,
    C)."""
    channels = latents.shape[1]
    noise = torch.randn(latents[:, :1].shape, generator=generator)
    plain, changes = vae.decode(latents), []
    for channel, deviation in enumerate(covariance.diagonal().sqrt().tolist()):
        moved = latents.clone()
        moved[:, channel] += PROBE * deviation * noise[:, 0]
        changes.append((vae.decode(moved) - plain).flatten() / (PROBE * deviation))
    responses = torch.stack(changes).double()
    return responses @ responses.T / (responses.shape[1] * noise.square().mean()) * channels
