"""Building blocks that the video and the image autoencoder share.

Both networks have one shape: convolution, residual stages with re-sampling between them, a middle with
attention, convolution. What differs is the convolution itself (causal 3-D with replicated edges, or plain
2-D with zeros) and the re-sampling, so those come from a `LayerKit` and the rest is written once. Attribute
names equal the keys of a Diffusers state dict.

Letters: B batch, C channels, T H W grid of the layer at hand, S = T H W.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

NORM_EPS = 1e-6


class Stage(NamedTuple):
    """One resolution of an encoder or decoder."""

    in_channels: int
    out_channels: int
    num_blocks: int
    factor_thw: tuple[int, int, int]
    """Re-sampling after the residual blocks; (1, 1, 1) means none."""


class LayerKit(Protocol):
    """Makes the layers in which the two autoencoders differ."""

    ops: Any
    factory: dict[str, Any]

    def conv(self, in_channels: int, out_channels: int, kernel: int = 3) -> nn.Module: ...

    def downsample(self, channels: int, factor_thw: tuple[int, int, int]) -> nn.Module: ...

    def upsample(self, channels: int, factor_thw: tuple[int, int, int]) -> nn.Module: ...

    def norm(self, groups: int, channels: int) -> nn.Module: ...


class ResnetBlock(nn.Module):
    """Two (norm, SiLU, convolution) steps around a shortcut."""

    def __init__(self, in_channels: int, out_channels: int, groups: int, kit: LayerKit) -> None:
        super().__init__()
        self.norm1 = kit.norm(groups, in_channels)
        self.conv1 = kit.conv(in_channels, out_channels)
        self.norm2 = kit.norm(groups, out_channels)
        self.conv2 = kit.conv(out_channels, out_channels)
        self.conv_shortcut = (
            kit.conv(in_channels, out_channels, kernel=1) if in_channels != out_channels else None
        )

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv1(F.silu(self.norm1(x)))
        h = self.conv2(F.silu(self.norm2(h)))
        return h + (x if self.conv_shortcut is None else self.conv_shortcut(x))


class Attention(nn.Module):
    """Single-head attention in which a frame sees itself and the frames before it."""

    def __init__(self, channels: int, groups: int, kit: LayerKit) -> None:
        super().__init__()
        self.group_norm = kit.norm(groups, channels)
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
        frame_tokens = shape[-2] * shape[-1]
        tokens = rearrange(self.group_norm(x), "b c ... -> b (...) c")  # (B, S, C)
        q, k, v = (layer(tokens).unsqueeze(1) for layer in (self.to_q, self.to_k, self.to_v))
        # frame by frame over a growing prefix: the same numbers as a masked S x S, without the mask
        frames = [
            F.scaled_dot_product_attention(
                q[:, :, end - frame_tokens : end], k[:, :, :end], v[:, :, :end]
            )
            for end in range(frame_tokens, tokens.shape[1] + 1, frame_tokens)
        ]
        out = self.to_out[0](torch.cat(frames, dim=2).squeeze(1))  # (B, S, C)
        return x + rearrange(out, "b s c -> b c s").reshape(shape)


class MidBlock(nn.Module):
    """Residual block, attention (optional), residual block, at the coarsest resolution."""

    def __init__(self, channels: int, groups: int, attention: bool, kit: LayerKit) -> None:
        super().__init__()
        self.resnets = nn.ModuleList(
            [ResnetBlock(channels, channels, groups, kit) for _ in range(2)]
        )
        self.attentions = nn.ModuleList([Attention(channels, groups, kit)] if attention else [])

    def forward(self, x: Tensor) -> Tensor:
        x = self.resnets[0](x)
        for attention in self.attentions:
            x = attention(x)
        return self.resnets[1](x)


def _residual_blocks(stage: Stage, groups: int, kit: LayerKit) -> nn.ModuleList:
    channels = [stage.in_channels] + [stage.out_channels] * (stage.num_blocks - 1)
    return nn.ModuleList([ResnetBlock(c, stage.out_channels, groups, kit) for c in channels])


class DownBlock(nn.Module):
    """Residual blocks, then a strided convolution."""

    def __init__(self, stage: Stage, groups: int, kit: LayerKit) -> None:
        super().__init__()
        self.resnets = _residual_blocks(stage, groups, kit)
        resample = stage.factor_thw != (1, 1, 1)
        self.downsamplers = nn.ModuleList(
            [kit.downsample(stage.out_channels, stage.factor_thw)] if resample else []
        )

    def forward(self, x: Tensor) -> Tensor:
        for layer in (*self.resnets, *self.downsamplers):
            x = layer(x)
        return x


class UpBlock(nn.Module):
    """Residual blocks, then nearest-neighbour enlargement and a convolution."""

    def __init__(self, stage: Stage, groups: int, kit: LayerKit) -> None:
        super().__init__()
        self.resnets = _residual_blocks(stage, groups, kit)
        resample = stage.factor_thw != (1, 1, 1)
        self.upsamplers = nn.ModuleList(
            [kit.upsample(stage.out_channels, stage.factor_thw)] if resample else []
        )

    def forward(self, x: Tensor) -> Tensor:
        for layer in (*self.resnets, *self.upsamplers):
            x = layer(x)
        return x


class Encoder(nn.Module):
    """Pixels to the parameters of the posterior, before `quant_conv`."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        stages: Sequence[Stage],
        *,
        groups: int,
        attention: bool,
        kit: LayerKit,
    ) -> None:
        super().__init__()
        last = stages[-1].out_channels
        self.conv_in = kit.conv(in_channels, stages[0].in_channels)
        self.down_blocks = nn.ModuleList([DownBlock(stage, groups, kit) for stage in stages])
        self.mid_block = MidBlock(last, groups, attention, kit)
        self.conv_norm_out = kit.norm(groups, last)
        self.conv_out = kit.conv(last, out_channels)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv_in(x)
        for block in self.down_blocks:
            x = block(x)
        x = self.mid_block(x)
        return self.conv_out(F.silu(self.conv_norm_out(x)))


class Decoder(nn.Module):
    """Latents, after `post_quant_conv`, to pixels."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        stages: Sequence[Stage],
        *,
        groups: int,
        attention: bool,
        kit: LayerKit,
    ) -> None:
        super().__init__()
        first, last = stages[0].in_channels, stages[-1].out_channels
        self.conv_in = kit.conv(in_channels, first)
        self.mid_block = MidBlock(first, groups, attention, kit)
        self.up_blocks = nn.ModuleList([UpBlock(stage, groups, kit) for stage in stages])
        self.conv_norm_out = kit.norm(groups, last)
        self.conv_out = kit.conv(last, out_channels)

    def forward(self, x: Tensor) -> Tensor:
        x = self.mid_block(self.conv_in(x))
        for block in self.up_blocks:
            x = block(x)
        return self.conv_out(F.silu(self.conv_norm_out(x)))
