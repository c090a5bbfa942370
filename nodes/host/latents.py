"""Latent spaces: which VAE a transformer works with, and how its latents look in a preview."""

from __future__ import annotations

from dataclasses import dataclass

import comfy.latent_formats
from torch import Tensor

from ...kandinsky_core.checkpoint import CheckpointInfo, identify
from ...kandinsky_core.family import RELEASED, VAE_OF, VAES, ImageVAEConfig, Size, VideoVAEConfig
from ...kandinsky_core.models import to_model_space, to_vae_space
from ...kandinsky_core.nano import nano_path
from .preview_colors import NANO_RGB_BIAS, NANO_RGB_FACTORS

SPACE = "k5_space"
"""LATENT and conditioning key: name of the latent space that the tensors beside it are in."""
NANO = "nano"
"""Name of the space of the bundled VAE, which no other node loads."""


@dataclass(frozen=True)
class LatentSpace:
    """The latents of one VAE."""

    name: str
    """Of the VAE, as users know it; two spaces are the same if their names are."""
    config: VideoVAEConfig | ImageVAEConfig
    """The VAE's dimensions."""
    rgb_factors: list[list[float]]
    """(C, 3): a linear guess at the picture, for previews."""
    rgb_bias: list[float]

    def latent_format(self) -> comfy.latent_formats.LatentFormat:
        """Return what ComfyUI asks to scale and preview latents."""
        return _Format(self)


class _Format(comfy.latent_formats.LatentFormat):
    def __init__(self, space: LatentSpace) -> None:
        self._config = space.config
        self.latent_channels = space.config.latent_channels
        self.latent_dimensions = 3 if isinstance(space.config, VideoVAEConfig) else 2
        self.latent_rgb_factors = space.rgb_factors
        self.latent_rgb_factors_bias = space.rgb_bias
        self.scale_factor = space.config.scaling_factor

    def process_in(self, latent: Tensor) -> Tensor:
        return to_model_space(latent, self._config)

    def process_out(self, latent: Tensor) -> Tensor:
        return to_vae_space(latent, self._config)


def space_of_vae(config: VideoVAEConfig | ImageVAEConfig) -> LatentSpace:
    """Return the latent space of a VAE, told by its dimensions."""
    if isinstance(config, ImageVAEConfig):
        flux = comfy.latent_formats.Flux()
        return LatentSpace("FLUX.1", config, flux.latent_rgb_factors, flux.latent_rgb_factors_bias)
    if config.block_out_channels == VideoVAEConfig().block_out_channels:
        hunyuan = comfy.latent_formats.HunyuanVideo
        return LatentSpace(
            "HunyuanVideo", config, hunyuan.latent_rgb_factors, hunyuan.latent_rgb_factors_bias
        )
    return LatentSpace(NANO, config, NANO_RGB_FACTORS, NANO_RGB_BIAS)


def space_of_transformer(info: CheckpointInfo) -> LatentSpace:
    """Return the latent space that a transformer works in."""
    vae = VAE_OF.get(info.release.variant if info.release else info.variant, "hunyuan")
    if vae != "nano":
        return space_of_vae(VAES[vae])
    # training writes scale and shift into the file
    config = identify(nano_path("vae"), component="vae").config
    assert isinstance(config, VideoVAEConfig)
    return space_of_vae(config)


def pixel_size(latents: Tensor) -> Size:
    """Return height and width in pixels of latents (..., h, w)."""
    _, space_h, space_w = RELEASED.compression_thw
    return latents.shape[-2] * space_h, latents.shape[-1] * space_w
