"""Between VAE space (what a VAE returns) and model space (what the transformer sees)."""

from __future__ import annotations

from torch import Tensor

from ...family.config import ImageVAEConfig, VideoVAEConfig


def to_model_space(latents: Tensor, vae: VideoVAEConfig | ImageVAEConfig) -> Tensor:
    """Shift and scale latents of any shape as the transformer was trained."""
    return (latents - vae.shift_factor) * vae.scaling_factor


def to_vae_space(latents: Tensor, vae: VideoVAEConfig | ImageVAEConfig) -> Tensor:
    """Undo `to_model_space`."""
    return latents / vae.scaling_factor + vae.shift_factor
