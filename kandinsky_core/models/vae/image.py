"""The 2-D autoencoder of FLUX.1-dev, which Kandinsky 5 uses for images.

Source: black-forest-labs/flux `autoencoder.py`; numbers and names follow Diffusers' `AutoencoderKL`
with FLUX's configuration (no quant convolutions). An image is a clip of one frame here: tensors
keep a time axis of length 1.

Letters: B batch, C latent channels, H W pixels, h w latent grid.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...family.config import ImageVAEConfig
from .base import Autoencoder
from .causal import FactorTHW, arrange


class ImageDownsample(nn.Module):
    """Strided convolution that pads with zeros on the right and below only."""

    def __init__(self, conv: nn.Module) -> None:
        super().__init__()
        self.conv = conv

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.pad(x, (0, 1, 0, 1)))


class ImageUpsample(nn.Module):
    """Nearest-neighbour enlargement, then a convolution."""

    def __init__(self, conv: nn.Module, factor: tuple[int, int]) -> None:
        super().__init__()
        self.factor = factor
        self.conv = conv

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.interpolate(x, scale_factor=self.factor, mode="nearest"))


class ImageKit:
    """Makes the layers of the image autoencoder."""

    def __init__(self, ops: Any, factory: dict[str, Any]) -> None:
        self.ops = ops
        self.factory = factory

    def conv(self, in_channels: int, out_channels: int, kernel: int = 3) -> nn.Module:
        return self.ops.Conv2d(
            in_channels, out_channels, kernel, padding=kernel // 2, **self.factory
        )

    def downsample(self, channels: int, factor_thw: FactorTHW) -> ImageDownsample:
        return ImageDownsample(
            self.ops.Conv2d(channels, channels, 3, stride=factor_thw[1:], **self.factory)
        )

    def upsample(self, channels: int, factor_thw: FactorTHW) -> ImageUpsample:
        return ImageUpsample(self.conv(channels, channels), factor_thw[1:])


class ImageVAE(Autoencoder):
    """Image autoencoder.

    Args:
        config: Dimensions.
        ops: Namespace that provides Conv2d, GroupNorm and Linear.
        dtype: Of the parameters.
        device: Of the parameters.
    """

    config: ImageVAEConfig

    def __init__(
        self,
        config: ImageVAEConfig,
        *,
        ops: Any = nn,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ) -> None:
        super().__init__(config, ImageKit(ops, {"dtype": dtype, "device": device}))

    def encode_tile(self, pixels: Tensor) -> Tensor:
        return self.encoder(arrange(_one_frame(pixels, "pixels"))).unsqueeze(2)  # (B, 2C, 1, h, w)

    def decode_tile(self, latents: Tensor) -> Tensor:
        return self.decoder(arrange(_one_frame(latents, "latents"))).unsqueeze(2)  # (B, 3, 1, H, W)


def _one_frame(x: Tensor, name: str) -> Tensor:
    if x.shape[2] != 1:
        raise ValueError(
            f"{name} have {x.shape[2]} frames: the image VAE takes one; use a video VAE for clips."
        )
    return x.squeeze(2)
