"""What the video and the image autoencoder share: stages, blocks, encoder, decoder.

Both networks have one shape: convolution, residual stages with re-sampling between them, a middle
with attention, convolution. What differs is the convolution itself (causal 3-D with replicated
edges, or plain 2-D with zeros) and the re-sampling, so those come from a kit and the rest is
written once. Attribute names equal the keys of a Diffusers state dict.

Letters: B batch, C channels, T H W grid of the layer at hand, S = T H W.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple, Protocol, cast

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from ...family.config import ImageVAEConfig, VideoVAEConfig
from .causal import CausalConv3d, FactorTHW

NORM_EPS = 1e-6

VAEConfig = VideoVAEConfig | ImageVAEConfig


class Stage(NamedTuple):
    """One resolution of an encoder or decoder: residual blocks, then re-sampling."""

    in_channels: int
    out_channels: int
    num_blocks: int
    factor_thw: FactorTHW
    """How much coarser (encoder) or finer (decoder) the next stage is; (1, 1, 1) for none."""

    @property
    def resamples(self) -> bool:
        return self.factor_thw != (1, 1, 1)


def encoder_stages(config: VAEConfig) -> list[Stage]:
    """Return the encoder's stages, finest first."""
    return _stages(config, config.block_out_channels, config.layers_per_block)


def decoder_stages(config: VAEConfig) -> list[Stage]:
    """Return the decoder's stages, coarsest first."""
    return _stages(config, config.block_out_channels[::-1], config.layers_per_block + 1)


def pixel_channels(config: VAEConfig) -> int:
    """Return the channels of the first and the last convolution: colours times folded pixels."""
    return 3 * config.patch_size**2 if isinstance(config, VideoVAEConfig) else 3


def compression_thw(config: VAEConfig) -> FactorTHW:
    """Return frames and pixels per latent cell (in time: after the first frame)."""
    time = config.temporal_compression if isinstance(config, VideoVAEConfig) else 1
    return time, config.spatial_compression, config.spatial_compression


def _stages(config: VAEConfig, channels: Sequence[int], num_blocks: int) -> list[Stage]:
    # Counted from the start in the encoder and in the decoder alike: the first stages re-sample
    # space, the last ones before the final stage time.
    patch = config.patch_size if isinstance(config, VideoVAEConfig) else 1
    num_space = int(math.log2(config.spatial_compression // patch))
    num_time = int(math.log2(compression_thw(config)[0]))
    last = len(channels) - 1
    inputs = (channels[0], *channels[:-1])
    stages = []
    for i, (c_in, c_out) in enumerate(zip(inputs, channels, strict=True)):
        time = 2 if last - num_time <= i < last else 1
        space = 2 if i < num_space else 1
        stages.append(Stage(c_in, c_out, num_blocks, (time, space, space)))
    return stages


class Kit(Protocol):
    """Makes the layers in which the two autoencoders differ."""

    ops: Any
    """Namespace of layer classes: torch.nn or a replacement."""
    factory: dict[str, Any]
    """Keyword arguments of every layer: dtype and device."""

    def conv(self, in_channels: int, out_channels: int, kernel: int = 3) -> nn.Module: ...

    def downsample(self, channels: int, factor_thw: FactorTHW) -> nn.Module: ...

    def upsample(self, channels: int, factor_thw: FactorTHW) -> nn.Module: ...


def _norm(groups: int, channels: int, kit: Kit) -> nn.GroupNorm:
    return kit.ops.GroupNorm(groups, channels, eps=NORM_EPS, **kit.factory)


def _norm_silu_conv(x: Tensor, norm: nn.GroupNorm, conv: nn.Module) -> Tensor:
    if isinstance(conv, CausalConv3d):
        return conv(x, norm)
    return conv(F.silu(norm(x), inplace=not torch.is_grad_enabled()))


class ResnetBlock(nn.Module):
    """Two (norm, SiLU, convolution) steps around a shortcut."""

    def __init__(self, in_channels: int, out_channels: int, groups: int, kit: Kit) -> None:
        super().__init__()
        self.norm1 = _norm(groups, in_channels, kit)
        self.conv1 = kit.conv(in_channels, out_channels)
        self.norm2 = _norm(groups, out_channels, kit)
        self.conv2 = kit.conv(out_channels, out_channels)
        self.conv_shortcut = (
            kit.conv(in_channels, out_channels, kernel=1) if in_channels != out_channels else None
        )

    def forward(self, x: Tensor) -> Tensor:
        h = _norm_silu_conv(x, self.norm1, self.conv1)
        h = _norm_silu_conv(h, self.norm2, self.conv2)
        # in place: no gradient needs a convolution's output
        return h.add_(x if self.conv_shortcut is None else self.conv_shortcut(x))


class Attention(nn.Module):
    """Single-head attention in which a frame sees itself and the frames before it."""

    def __init__(self, channels: int, groups: int, kit: Kit) -> None:
        super().__init__()
        self.group_norm = _norm(groups, channels, kit)
        self.to_q = kit.ops.Linear(channels, channels, **kit.factory)
        self.to_k = kit.ops.Linear(channels, channels, **kit.factory)
        self.to_v = kit.ops.Linear(channels, channels, **kit.factory)
        self.to_out = nn.ModuleList([kit.ops.Linear(channels, channels, **kit.factory)])

    def forward(self, x: Tensor) -> Tensor:
        """Attend.

        Args:
            x: (B, C, T, H, W), or (B, C, H, W) for one frame.

        Returns:
            The same shape.
        """
        shape = x.shape
        frame = shape[-2] * shape[-1]
        tokens = rearrange(self.group_norm(x), "b c ... -> b (...) c")  # (B, S, C)
        q, k, v = (layer(tokens).unsqueeze(1) for layer in (self.to_q, self.to_k, self.to_v))
        # frame by frame over a growing prefix: the numbers of an S x S mask without the mask
        frames = [
            F.scaled_dot_product_attention(q[:, :, end - frame : end], k[:, :, :end], v[:, :, :end])
            for end in range(frame, tokens.shape[1] + 1, frame)
        ]
        out = self.to_out[0](torch.cat(frames, dim=2).squeeze(1))  # (B, S, C)
        return x + rearrange(out, "b s c -> b c s").reshape(shape)


class MidBlock(nn.Module):
    """Residual block, attention (optional), residual block, at the coarsest resolution."""

    def __init__(self, channels: int, groups: int, attention: bool, kit: Kit) -> None:
        super().__init__()
        self.resnets = nn.ModuleList(ResnetBlock(channels, channels, groups, kit) for _ in range(2))
        self.attentions = nn.ModuleList([Attention(channels, groups, kit)] if attention else [])

    def layers(self) -> list[nn.Module]:
        first, second = self.resnets
        return [first, *self.attentions, second]


def _resnets(stage: Stage, groups: int, kit: Kit) -> nn.ModuleList:
    inputs = (stage.in_channels, *[stage.out_channels] * (stage.num_blocks - 1))
    return nn.ModuleList(ResnetBlock(c_in, stage.out_channels, groups, kit) for c_in in inputs)


class DownBlock(nn.Module):
    """Residual blocks, then a strided convolution."""

    def __init__(self, stage: Stage, groups: int, kit: Kit) -> None:
        super().__init__()
        self.resnets = _resnets(stage, groups, kit)
        self.downsamplers = nn.ModuleList(
            [kit.downsample(stage.out_channels, stage.factor_thw)] if stage.resamples else []
        )

    def layers(self) -> list[nn.Module]:
        return [*self.resnets, *self.downsamplers]


class UpBlock(nn.Module):
    """Residual blocks, then nearest-neighbour enlargement and a convolution."""

    def __init__(self, stage: Stage, groups: int, kit: Kit) -> None:
        super().__init__()
        self.resnets = _resnets(stage, groups, kit)
        self.upsamplers = nn.ModuleList(
            [kit.upsample(stage.out_channels, stage.factor_thw)] if stage.resamples else []
        )

    def layers(self) -> list[nn.Module]:
        return [*self.resnets, *self.upsamplers]


class Encoder(nn.Module):
    """Pixels (folded) to the parameters of the posterior, before `quant_conv`."""

    def __init__(self, config: VAEConfig, kit: Kit) -> None:
        super().__init__()
        groups, stages = config.norm_num_groups, encoder_stages(config)
        last = stages[-1].out_channels
        self.conv_in = kit.conv(pixel_channels(config), stages[0].in_channels)
        self.down_blocks = nn.ModuleList(DownBlock(stage, groups, kit) for stage in stages)
        self.mid_block = MidBlock(last, groups, _has_attention(config), kit)
        self.conv_norm_out = _norm(groups, last, kit)
        self.conv_out = kit.conv(last, 2 * config.latent_channels)

    def layers(self) -> Iterator[nn.Module]:
        yield self.conv_in
        for block in cast("Sequence[DownBlock]", self.down_blocks):
            yield from block.layers()
        yield from self.mid_block.layers()

    def forward(self, x: Tensor) -> Tensor:
        # one flat loop: a block's input is freed as soon as its first layer is done
        for layer in self.layers():
            x = layer(x)
        return _norm_silu_conv(x, self.conv_norm_out, self.conv_out)


class Decoder(nn.Module):
    """Latents, after `post_quant_conv`, to pixels (folded)."""

    def __init__(self, config: VAEConfig, kit: Kit) -> None:
        super().__init__()
        groups, stages = config.norm_num_groups, decoder_stages(config)
        first, last = stages[0].in_channels, stages[-1].out_channels
        self.conv_in = kit.conv(config.latent_channels, first)
        self.mid_block = MidBlock(first, groups, _has_attention(config), kit)
        self.up_blocks = nn.ModuleList(UpBlock(stage, groups, kit) for stage in stages)
        self.conv_norm_out = _norm(groups, last, kit)
        self.conv_out = kit.conv(last, pixel_channels(config))

    def layers(self) -> Iterator[nn.Module]:
        yield self.conv_in
        yield from self.mid_block.layers()
        for block in cast("Sequence[UpBlock]", self.up_blocks):
            yield from block.layers()

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers():
            x = layer(x)
        return _norm_silu_conv(x, self.conv_norm_out, self.conv_out)


def _has_attention(config: VAEConfig) -> bool:
    return config.mid_block_attention if isinstance(config, VideoVAEConfig) else True
