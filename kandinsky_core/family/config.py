"""Shapes of every network in the family, as frozen dataclasses.

A config is the whole description of a network: building it twice from the same
config gives the same parameter names and shapes. The rows that exist are in
`variants.py`. Source of the figures: arXiv 2511.14993 and kandinskylab/kandinsky-5
(commit 6e2a805).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

METADATA_KEY = "kandinsky_core"
"""Metadata entry of our own files: JSON with the config and what else the file says of itself."""


@dataclass(frozen=True)
class DiTConfig:
    """Dimensions of one CrossDiT."""

    model_dim: int
    """Width D of the token stream."""
    ff_dim: int
    """Hidden width of the feed-forward layers."""
    time_dim: int
    """Width of the time embedding."""
    num_text_blocks: int
    """Blocks of the text refiner."""
    num_visual_blocks: int
    """Blocks of the visual stream."""
    axes_dims: tuple[int, int, int]
    """Rotary channels per axis (t, h, w); their sum is the head dim K."""
    visual_cond: bool = True
    """Whether the input is [noisy, condition, mask] in channels rather than noisy alone."""
    latent_channels: int = 16
    """Channels C of the latents, in and out."""
    text_dim: int = 3584
    """Width of the text tokens (Qwen2.5-VL-7B)."""
    pooled_dim: int = 768
    """Width of the pooled text vector (CLIP ViT-L/14)."""
    patch_thw: tuple[int, int, int] = (1, 2, 2)
    """Latent cells joined into one token, per axis."""
    max_grid_thw: tuple[int, int, int] = (128, 128, 128)
    """Most tokens per axis: the rows of the reference's rotary tables."""

    def __post_init__(self) -> None:
        if self.model_dim % self.head_dim:
            raise ValueError(
                f"model_dim {self.model_dim} is not a multiple of head_dim {self.head_dim} "
                f"(sum of axes_dims {self.axes_dims})"
            )
        if any(dim % 2 for dim in self.axes_dims):
            raise ValueError(f"axes_dims {self.axes_dims} must be even")

    @property
    def head_dim(self) -> int:
        return sum(self.axes_dims)

    @property
    def num_heads(self) -> int:
        return self.model_dim // self.head_dim

    @property
    def input_channels(self) -> int:
        """Channels of the network's input: latents, and condition plus mask where used."""
        return 2 * self.latent_channels + 1 if self.visual_cond else self.latent_channels

    @property
    def patch_volume(self) -> int:
        return math.prod(self.patch_thw)


@dataclass(frozen=True)
class VideoVAEConfig:
    """Dimensions of the causal 3-D autoencoder (HunyuanVideo's, and nano's smaller row)."""

    block_out_channels: tuple[int, ...] = (128, 256, 512, 512)
    """Channels per resolution, finest first."""
    layers_per_block: int = 2
    """Residual blocks per resolution in the encoder (the decoder has one more)."""
    latent_channels: int = 16
    """Channels C of the latents."""
    norm_num_groups: int = 32
    """Groups of every GroupNorm."""
    spatial_compression: int = 8
    """Pixels per latent cell, height and width."""
    temporal_compression: int = 4
    """Frames per latent frame after the first."""
    mid_block_attention: bool = True
    """Whether the middle blocks attend over all positions of a frame and those before it."""
    patch_size: int = 1
    """Pixels folded into channels before the first convolution (1 in the released VAE)."""
    scaling_factor: float = 0.476986
    """Model-space latent = VAE latent x this."""
    shift_factor: float = 0.0
    """Subtracted from the VAE latent before scaling."""


@dataclass(frozen=True)
class ImageVAEConfig:
    """Dimensions of the 2-D autoencoder (FLUX.1-dev's)."""

    block_out_channels: tuple[int, ...] = (128, 256, 512, 512)
    """Channels per resolution, finest first."""
    layers_per_block: int = 2
    """Residual blocks per resolution in the encoder (the decoder has one more)."""
    latent_channels: int = 16
    """Channels C of the latents."""
    norm_num_groups: int = 32
    """Groups of every GroupNorm."""
    spatial_compression: int = 8
    """Pixels per latent cell, height and width."""
    scaling_factor: float = 0.3611
    """Model-space latent = VAE latent x this."""
    shift_factor: float = 0.0
    """Subtracted from the VAE latent before scaling. Zero in the reference, which leaves out
    FLUX's own shift."""


@dataclass(frozen=True)
class NanoTextConfig:
    """Dimensions of the nano family's text encoder."""

    vocab_size: int
    """Number of word ids."""
    dim: int = 128
    """Width of the tokens it returns; also the pooled width."""
    num_layers: int = 2
    """Number of transformer layers."""
    num_heads: int = 4
    """Number of attention heads."""
    max_len: int = 64
    """Most words of a prompt that are read."""
