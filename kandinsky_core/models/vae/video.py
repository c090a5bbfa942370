"""The causal 3-D autoencoder of HunyuanVideo, which Kandinsky 5 uses for video.

A frame is computed from itself and earlier frames only, so the first latent frame stands for one
frame and every later one for `temporal_compression` frames: F = 4 (T - 1) + 1. Source: arXiv
2412.03603; numbers and names follow Diffusers' `AutoencoderKLHunyuanVideo`. New here: `patch_size`,
which folds pixels into channels before the first convolution and out of them after the last (1 in
the released VAE, 4 in nano's).

Letters: B batch, C latent channels, F H W pixels, T h w latent grid.
"""

from __future__ import annotations

from collections.abc import Callable
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


def encode_last_frame(
    encode: Callable[[Tensor], Tensor], frame: Tensor, config: VideoVAEConfig, *, axis: int = 2
) -> Tensor:
    """Encode an image as the last latent frame of a clip, which stands for several frames.

    The VAE encodes all but the first frame in groups, so a group of equal frames stands for the
    image; it is encoded behind one more of them, as the causal VAE looks back. New here: the
    reference gives no last frame.

    Args:
        encode: Clip to latents (B, C, T, h, w); a VAE's own, or a host's around it.
        frame: A clip of one frame, laid out as `encode` takes it.
        config: Of the VAE.
        axis: That of the frames.

    Returns:
        Latents (B, C, 1, h, w).
    """
    shape = list(frame.shape)
    shape[axis] = config.temporal_compression + 1
    return encode(frame.expand(shape))[:, :, 1:]
