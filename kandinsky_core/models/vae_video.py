"""The causal 3-D autoencoder of HunyuanVideo, which Kandinsky 5 uses for video.

A frame is computed from itself and earlier frames only, so the first latent frame stands for one frame and
every later one for `temporal_compression` frames: F = 4 (T - 1) + 1. Source: arXiv 2412.03603; the numbers
follow Diffusers' `AutoencoderKLHunyuanVideo`, whose state-dict keys are the attribute names here. New here:
`patch_size`, which folds pixels into channels before the first convolution (nano uses 4).

Letters: B batch, C latent channels, F H W pixels, T and h w latent grid.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from ..config import VideoVAEConfig
from .vae_layers import NORM_EPS, Decoder, Encoder, Stage


class CausalConv3d(nn.Module):
    """3-D convolution that looks back in time only, with replicated edges."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel: int,
        stride: tuple[int, int, int],
        ops: Any,
        factory: dict[str, Any],
    ) -> None:
        super().__init__()
        self.padding = (*[kernel // 2] * 4, kernel - 1, 0)
        self.conv = ops.Conv3d(in_channels, out_channels, kernel, stride=stride, **factory)

    def forward(self, x: Tensor) -> Tensor:
        if any(self.padding):
            x = F.pad(x, self.padding, mode="replicate")
        return self.conv(x)


class CausalDownsample(nn.Module):
    """Strided causal convolution."""

    def __init__(self, conv: CausalConv3d) -> None:
        super().__init__()
        self.conv = conv

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x)


class CausalUpsample(nn.Module):
    """Nearest-neighbour enlargement in which the first frame stays one frame, then a convolution."""

    def __init__(self, conv: CausalConv3d, factor_thw: tuple[int, int, int]) -> None:
        super().__init__()
        self.factor_thw = factor_thw
        self.conv = conv

    def forward(self, x: Tensor) -> Tensor:
        time, height, width = self.factor_thw
        if (height, width) != (1, 1):
            x = x.repeat_interleave(height, dim=3).repeat_interleave(width, dim=4)
        if time != 1 and x.shape[2] > 1:
            x = torch.cat([x[:, :, :1], x[:, :, 1:].repeat_interleave(time, dim=2)], dim=2)
        return self.conv(x)


class CausalKit:
    """Layers of the video autoencoder."""

    def __init__(self, ops: Any, factory: dict[str, Any]) -> None:
        self.ops = ops
        self.factory = factory

    def conv(self, in_channels: int, out_channels: int, kernel: int = 3) -> CausalConv3d:
        return CausalConv3d(in_channels, out_channels, kernel, (1, 1, 1), self.ops, self.factory)

    def downsample(self, channels: int, factor_thw: tuple[int, int, int]) -> CausalDownsample:
        return CausalDownsample(
            CausalConv3d(channels, channels, 3, factor_thw, self.ops, self.factory)
        )

    def upsample(self, channels: int, factor_thw: tuple[int, int, int]) -> CausalUpsample:
        return CausalUpsample(self.conv(channels, channels), factor_thw)

    def norm(self, groups: int, channels: int) -> nn.Module:
        return self.ops.GroupNorm(groups, channels, eps=NORM_EPS, **self.factory)


def encoder_stages(config: VideoVAEConfig) -> list[Stage]:
    """Return the encoder's resolutions, finest first."""
    channels = config.block_out_channels
    factors = _factors(config)
    inputs = (channels[0], *channels[:-1])
    return [
        Stage(c_in, c_out, config.layers_per_block, factor)
        for c_in, c_out, factor in zip(inputs, channels, factors, strict=True)
    ]


def decoder_stages(config: VideoVAEConfig) -> list[Stage]:
    """Return the decoder's resolutions, coarsest first."""
    channels = config.block_out_channels[::-1]
    factors = _factors(config)
    inputs = (channels[0], *channels[:-1])
    return [
        Stage(c_in, c_out, config.layers_per_block + 1, factor)
        for c_in, c_out, factor in zip(inputs, channels, factors, strict=True)
    ]


def _factors(config: VideoVAEConfig) -> list[tuple[int, int, int]]:
    """Re-sampling after each stage, by its place in the row: the same for encoder and decoder.

    Space is halved (doubled) by the first stages and time by the last ones before the final stage.
    """
    num = len(config.block_out_channels)
    num_space = int(math.log2(config.spatial_compression // config.patch_size))
    num_time = int(math.log2(config.temporal_compression))
    return [
        (
            2 if num - 1 - num_time <= i < num - 1 else 1,
            2 if i < num_space else 1,
            2 if i < num_space else 1,
        )
        for i in range(num)
    ]


class VideoVAE(nn.Module):
    """Causal video autoencoder; latents are in VAE space (neither scaled nor shifted).

    Args:
        config: Dimensions.
        ops: Namespace that provides Conv3d, GroupNorm and Linear.
        dtype: Of the parameters.
        device: Of the parameters.
    """

    def __init__(
        self,
        config: VideoVAEConfig,
        *,
        ops: Any = nn,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ) -> None:
        super().__init__()
        self.config = config
        factory = {"dtype": dtype, "device": device}
        kit = CausalKit(ops, factory)
        latent, pixel = config.latent_channels, 3 * config.patch_size**2
        shared = {
            "groups": config.norm_num_groups,
            "attention": config.mid_block_attention,
            "kit": kit,
        }
        self.encoder = Encoder(pixel, 2 * latent, encoder_stages(config), **shared)
        self.decoder = Decoder(latent, pixel, decoder_stages(config), **shared)
        self.quant_conv = ops.Conv3d(2 * latent, 2 * latent, 1, **factory)
        self.post_quant_conv = ops.Conv3d(latent, latent, 1, **factory)

    def moments(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Encode to the posterior's mean and log variance.

        Args:
            pixels: (B, 3, F, H, W) in [-1, 1], F = 4 (T - 1) + 1.

        Returns:
            Mean and log variance, each (B, C, T, h, w).
        """
        p = self.config.patch_size
        x = rearrange(pixels, "b c f (h p) (w q) -> b (c p q) f h w", p=p, q=p)
        mean, logvar = self.quant_conv(self.encoder(x)).chunk(2, dim=1)  # (B, C, T, h, w)
        return mean, logvar.clamp(-30.0, 20.0)

    def encode(self, pixels: Tensor, *, generator: torch.Generator | None = None) -> Tensor:
        """Encode to latents: the posterior's mode, or a sample of it if a generator is given.

        Args:
            pixels: (B, 3, F, H, W) in [-1, 1].
            generator: Source of the sample.

        Returns:
            Latents (B, C, T, h, w) in VAE space.
        """
        mean, logvar = self.moments(pixels)
        if generator is None:
            return mean
        noise = torch.randn(mean.shape, generator=generator, device=generator.device)
        return mean + (0.5 * logvar).exp() * noise.to(mean)

    def decode(self, latents: Tensor) -> Tensor:
        """Decode latents.

        Args:
            latents: (B, C, T, h, w) in VAE space.

        Returns:
            Pixels (B, 3, F, H, W), about [-1, 1], F = 4 (T - 1) + 1.
        """
        p = self.config.patch_size
        x = self.decoder(self.post_quant_conv(latents))
        return rearrange(x, "b (c p q) f h w -> b c f (h p) (w q)", p=p, q=p)
