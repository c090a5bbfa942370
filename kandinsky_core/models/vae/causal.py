"""Causal 3-D layers of the video autoencoder, which hold a few frames at a time in memory.

A frame's convolution needs that frame and the two before it, so without gradients a large layer
runs in pieces of a few frames: normalised, padded and enlarged copies of a whole clip never exist,
and a layer's peak is its input plus its output. Group norm looks at the whole clip; its statistics
are gathered first. In bf16 on a CPU channels lie innermost, as oneDNN's convolutions compute: they
would reorder every input otherwise.

Letters: B batch, C channels, T H W grid of the layer at hand.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange, repeat
from torch import Tensor, nn

PIECE_ELEMENTS = 2**24
"""Layers with a larger input run in pieces of about this many elements (64 MiB in fp32)."""

FactorTHW = tuple[int, int, int]


def memory_format(x: Tensor) -> torch.memory_format:
    """Return the order in memory in which convolutions of (B, C, T, H, W) or (B, C, H, W) work."""
    if x.device.type != "cpu" or x.dtype != torch.bfloat16:
        return torch.contiguous_format
    return torch.channels_last_3d if x.ndim == len("bcthw") else torch.channels_last


def arrange(x: Tensor) -> Tensor:
    """Bring (B, C, T, H, W) or (B, C, H, W) into that order."""
    return x.contiguous(memory_format=memory_format(x))


class CausalConv3d(nn.Module):
    """3-D convolution that looks back in time only, with replicated edges."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel: int,
        stride_thw: FactorTHW,
        ops: Any,
        factory: dict[str, Any],
    ) -> None:
        super().__init__()
        self.lookback = kernel - 1
        self.edge = kernel // 2
        self.stride_t = stride_thw[0]
        self.conv = ops.Conv3d(in_channels, out_channels, kernel, stride=stride_thw, **factory)

    def forward(self, x: Tensor, norm: nn.GroupNorm | None = None) -> Tensor:
        """Convolve `x`, or SiLU(norm(x)) where a norm is given.

        Args:
            x: (B, C, T, H, W).
            norm: Group norm before the convolution.

        Returns:
            (B, C_out, ceil(T / stride), ...).
        """
        if not self.runs_in_pieces(x, x.numel()):
            if norm is not None:
                x = F.silu(norm(x), inplace=not torch.is_grad_enabled())
            return self.conv(self._pad(x, self.lookback))
        prepare = _identity if norm is None else _normalizer(x, norm)
        return self.in_pieces(
            lambda start, stop: prepare(x[:, :, start:stop]), x.shape[2], x[:, :, 0].numel()
        )

    def runs_in_pieces(self, x: Tensor, num_elements: int) -> bool:
        """Return whether an input of `num_elements`, made from `x`, is worth dividing, and may
        be."""
        needs_grad = x.requires_grad or self.conv.weight.requires_grad
        return num_elements > PIECE_ELEMENTS and not (needs_grad and torch.is_grad_enabled())

    def in_pieces(
        self, frames: Callable[[int, int], Tensor], num_frames: int, frame_elements: int
    ) -> Tensor:
        """Convolve frames that are made when they are needed.

        Args:
            frames: frames(start, stop) gives the input's frames (B, C, stop - start, H, W).
            num_frames: Frames of the input.
            frame_elements: Elements of one of them.

        Returns:
            (B, C_out, ceil(num_frames / stride), ...).
        """
        num_out = (num_frames - 1) // self.stride_t + 1
        step = max(1, PIECE_ELEMENTS // (frame_elements * self.stride_t))
        out: Tensor | None = None
        for start in range(0, num_out, step):
            stop = min(start + step, num_out)
            first = start * self.stride_t - self.lookback
            source = frames(max(first, 0), (stop - 1) * self.stride_t + 1)
            # (B, C_out, stop - start, H, W)
            piece: Tensor = self.conv(self._pad(source, max(-first, 0)))
            if out is None:
                batch, channels, _, *size = piece.shape
                out = torch.empty(
                    (batch, channels, num_out, *size),
                    dtype=piece.dtype,
                    device=piece.device,
                    memory_format=memory_format(piece),
                )
            out[:, :, start:stop].copy_(piece)
            del source, piece  # before the next piece is made
        assert out is not None, num_frames
        return out

    def _pad(self, x: Tensor, past: int) -> Tensor:
        if not (self.edge or past):
            return x
        return F.pad(x, (*[self.edge] * 4, past, 0), mode="replicate")


class CausalDownsample(nn.Module):
    """Strided causal convolution."""

    def __init__(self, conv: CausalConv3d) -> None:
        super().__init__()
        self.conv = conv

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x)


class CausalUpsample(nn.Module):
    """Nearest-neighbour enlargement, the first frame staying one frame, then a convolution."""

    def __init__(self, conv: CausalConv3d, factor_thw: FactorTHW) -> None:
        super().__init__()
        self.factor_thw = factor_thw
        self.conv = conv

    def forward(self, x: Tensor) -> Tensor:
        time, height, width = self.factor_thw
        num_frames = 1 + (x.shape[2] - 1) * time

        def frames(start: int, stop: int) -> Tensor:
            source = (torch.arange(start, stop, device=x.device) + time - 1) // time
            chosen = arrange(x.index_select(2, source))
            if x.device.type == "cpu":  # keeps the order; other devices may lack it in 3-D
                return F.interpolate(chosen, scale_factor=(1, height, width), mode="nearest")
            return repeat(chosen, "b c t h w -> b c t (h p) (w q)", p=height, q=width)

        frame_elements = x[:, :, 0].numel() * height * width
        if self.conv.runs_in_pieces(x, frame_elements * num_frames):
            return self.conv.in_pieces(frames, num_frames, frame_elements)
        return self.conv(frames(0, num_frames))


def _identity(x: Tensor) -> Tensor:
    return x


def _normalizer(x: Tensor, norm: nn.GroupNorm) -> Callable[[Tensor], Tensor]:
    """Gather group statistics over a clip; return SiLU(norm(.)) for some of its frames."""
    moments = [_moments(frame) for frame in x.unbind(2)]
    var_t, mean_t = (
        rearrange(torch.stack(values), "t b (g c) -> b g (t c)", g=norm.num_groups)
        for values in zip(*moments, strict=True)
    )
    mean = mean_t.mean(-1)  # (B, groups)
    # parts are equally large: variance = mean of the variances + variance of the means
    var = var_t.mean(-1) + mean_t.var(-1, correction=0)

    group_size = x.shape[1] // norm.num_groups
    mean, rstd = (
        repeat(value, "b g -> b (g c) 1 1 1", c=group_size)
        for value in (mean, torch.rsqrt(var + norm.eps))
    )
    weight, bias = (
        rearrange(value.to(mean), "c -> 1 c 1 1 1") for value in (norm.weight, norm.bias)
    )
    scale = weight * rstd  # (B, C, 1, 1, 1)
    offset = bias - mean * scale

    def normalize(frames: Tensor) -> Tensor:
        return F.silu(torch.addcmul(offset, frames.float(), scale).to(x.dtype), inplace=True)

    return normalize


def _moments(frame: Tensor) -> tuple[Tensor, Tensor]:
    """Return variance and mean, fp32 (B, C), of the channels of a frame (B, C, H, W).

    Not `torch.var_mean`, which takes five times as long where channels lie innermost.
    """
    mean = frame.mean(dim=(-2, -1), keepdim=True, dtype=torch.float32)
    return (frame - mean).square_().mean(dim=(-2, -1)), mean.flatten(1)


class CausalKit:
    """Makes the layers of the video autoencoder."""

    def __init__(self, ops: Any, factory: dict[str, Any]) -> None:
        self.ops = ops
        self.factory = factory

    def conv(self, in_channels: int, out_channels: int, kernel: int = 3) -> CausalConv3d:
        return CausalConv3d(in_channels, out_channels, kernel, (1, 1, 1), self.ops, self.factory)

    def downsample(self, channels: int, factor_thw: FactorTHW) -> CausalDownsample:
        return CausalDownsample(
            CausalConv3d(channels, channels, 3, factor_thw, self.ops, self.factory)
        )

    def upsample(self, channels: int, factor_thw: FactorTHW) -> CausalUpsample:
        return CausalUpsample(self.conv(channels, channels), factor_thw)
