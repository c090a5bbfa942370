"""The causal 3-D autoencoder of HunyuanVideo, which Kandinsky 5 uses for video.

A frame is computed from itself and earlier frames only, so the first latent frame stands for one
frame and every later one for `temporal_compression` frames: F = 4 (T - 1) + 1. Source: arXiv
2412.03603; numbers and names follow Diffusers' `AutoencoderKLHunyuanVideo`. New here: `patch_size`,
which folds pixels into channels before the first convolution and out of them after the last (1 in
the released VAE, 4 in nano's).

Letters: B batch, C latent channels, F H W pixels, T h w latent grid.
"""

from __future__ import annotations

from typing import Any

import torch
from einops import rearrange
from torch import Tensor, nn

from ...family.config import VideoVAEConfig
from .base import Autoencoder
from .causal import CausalKit, arrange


class VideoVAE(Autoencoder):
    """Causal video autoencoder.

    Args:
        config: Dimensions.
        ops: Namespace that provides Conv3d, GroupNorm and Linear.
        dtype: Of the parameters.
        device: Of the parameters.
    """

    config: VideoVAEConfig

    def __init__(
        self,
        config: VideoVAEConfig,
        *,
        ops: Any = nn,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ) -> None:
        factory = {"dtype": dtype, "device": device}
        super().__init__(config, CausalKit(ops, factory))
        channels = config.latent_channels
        self.quant_conv = ops.Conv3d(2 * channels, 2 * channels, 1, **factory)
        self.post_quant_conv = ops.Conv3d(channels, channels, 1, **factory)

    def encode_tile(self, pixels: Tensor) -> Tensor:
        p = self.config.patch_size
        x = rearrange(pixels, "b c f (h p) (w q) -> b (c p q) f h w", p=p, q=p)
        return self.quant_conv(self.encoder(arrange(x)))  # (B, 2C, T, h, w)

    def decode_tile(self, latents: Tensor) -> Tensor:
        p = self.config.patch_size
        x = self.decoder(self.post_quant_conv(arrange(latents)))
        return rearrange(x, "b (c p q) f h w -> b c f (h p) (w q)", p=p, q=p)
