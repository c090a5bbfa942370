"""How much memory one tile of an autoencoder takes, from its dimensions alone.

Counts the tensors alive at the worst moment of each layer, in a forward pass without gradients.
Weights, input and result are not counted. tests/core/test_vae_tiling.py holds it against the
peak of real runs.

Letters: B batch, C channels, T H W grid of the layer at hand.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from ...family.config import ImageVAEConfig, VideoVAEConfig
from .causal import PIECE_ELEMENTS, FactorTHW
from .layers import (
    Stage,
    VAEConfig,
    compression_thw,
    decoder_stages,
    encoder_stages,
    pixel_channels,
)

LIBRARY_COPIES = 1.25
"""Copies of a convolution's input and output that its library makes for itself, out of our sight.
Resident memory of small runs on a CPU was 1.4 to 2.3 times our tensors."""
ATTENTION_COPIES = 8
"""Tensors of the middle grid's size alive in attention: its input, the normalised input, queries,
keys, values, the frames' outputs, their sum through the last layer, and the result."""
FP32 = 4
"""Bytes of a float32 number."""


class _Meter:
    """Follows the grid through a network; remembers the most bytes alive."""

    def __init__(
        self, grid_thw: Sequence[int], batch: int, dtype: torch.dtype, *, causal: bool
    ) -> None:
        self.time, self.height, self.width = grid_thw
        self.batch = batch
        self.item = dtype.itemsize
        self.causal = causal
        self.base = 0
        """Elements that something outside the layers holds all along."""
        self.tensors = 0.0
        self.with_library = 0.0

    @property
    def frame(self) -> int:
        return self.batch * self.height * self.width

    @property
    def volume(self) -> int:
        return self.frame * self.time

    def convolve(
        self,
        held: int,
        c_in: int,
        c_out: int,
        *,
        copied: bool = False,
        normed: bool = False,
        stride_thw: FactorTHW = (1, 1, 1),
    ) -> None:
        """Count a convolution.

        Args:
            held: Elements alive beside it, its input included.
            c_in: Channels in.
            c_out: Channels out.
            copied: Whether it works on a copy of its input, normalised or enlarged.
            normed: Whether that copy is made through fp32.
            stride_thw: Of the convolution.
        """
        stride_t, stride_h, stride_w = stride_thw
        frame_out = self.batch * (self.height // stride_h) * (self.width // stride_w)
        time_out = (self.time - 1) // stride_t + 1
        held += self.base
        if not self.causal:
            # only a strided one pads by itself: on the right and below
            edge = 0 if stride_h == 1 else 1
            padded = c_in * self.batch * (self.height + edge) * (self.width + edge) * edge
            self._note(held, copied * c_in * self.volume, padded, c_out * frame_out)
            return
        edged = c_in * self.batch * (self.height + 2) * (self.width + 2)
        if c_in * self.volume <= PIECE_ELEMENTS:
            out = c_out * frame_out * time_out
            self._note(held, copied * c_in * self.volume, edged * (self.time + 2), out)
            return
        # piece by piece into a result that is there as a whole
        frames_out = min(max(1, PIECE_ELEMENTS // (c_in * self.frame * stride_t)), time_out)
        frames_in = (frames_out - 1) * stride_t + 3
        source = c_in * self.frame * min(frames_in, self.time)
        held += c_out * frame_out * time_out
        self._note(held, copied * source, edged * frames_in, c_out * frame_out * frames_out)
        if normed and self.item < FP32:
            self.tensors = max(self.tensors, held * self.item + 2 * FP32 * source)

    def resnet(self, c_in: int, c_out: int) -> None:
        given, made = c_in * self.volume, c_out * self.volume
        self.convolve(given, c_in, c_out, copied=True, normed=True)
        self.convolve(given + made, c_out, c_out, copied=True, normed=True)

    def stage(self, stage: Stage) -> None:
        for i in range(stage.num_blocks):
            self.resnet(stage.out_channels if i else stage.in_channels, stage.out_channels)

    def middle(self, channels: int, *, attention: bool) -> None:
        self.resnet(channels, channels)
        if attention:
            self._note(self.base + ATTENTION_COPIES * channels * self.volume, 0, 0, 0)

    def coarser(self, factor_thw: FactorTHW, channels: int) -> None:
        held = channels * self.volume
        self.convolve(held, channels, channels, stride_thw=factor_thw)
        time, height, width = factor_thw
        self.time = (self.time - 1) // time + 1
        self.height, self.width = self.height // height, self.width // width

    def finer(self, factor_thw: FactorTHW, channels: int) -> None:
        held = channels * self.volume
        time, height, width = factor_thw
        self.time = (self.time - 1) * time + 1
        self.height, self.width = self.height * height, self.width * width
        self.convolve(held, channels, channels, copied=True)

    def _note(self, held: int, source: int, padded: int, out: int) -> None:
        """Note elements: held, the copy of the input, the padded copy, the output."""
        live = held + source + padded + out
        library = LIBRARY_COPIES * (max(source, padded) + out)
        self.tensors = max(self.tensors, live * self.item)
        self.with_library = max(self.with_library, self.tensors, (live + library) * self.item)


def tensor_bytes(
    config: VAEConfig, tile_thw: Sequence[int], batch: int, dtype: torch.dtype, direction: str
) -> int:
    """Count the tensors alive at the peak of one tile.

    Args:
        config: The autoencoder.
        tile_thw: Latent cells of the tile.
        batch: Clips at once.
        dtype: Of the network.
        direction: "encode" or "decode".

    Returns:
        Bytes.
    """
    return int(_measured(config, tile_thw, batch, dtype, direction).tensors)


def tile_bytes(
    config: VAEConfig, tile_thw: Sequence[int], batch: int, dtype: torch.dtype, direction: str
) -> int:
    """Return what to allow for one tile: its tensors, and what libraries take beside them.

    Args:
        config: The autoencoder.
        tile_thw: Latent cells of the tile.
        batch: Clips at once.
        dtype: Of the network.
        direction: "encode" or "decode".

    Returns:
        Bytes.
    """
    return int(_measured(config, tile_thw, batch, dtype, direction).with_library)


def _measured(
    config: VAEConfig, tile_thw: Sequence[int], batch: int, dtype: torch.dtype, direction: str
) -> _Meter:
    causal = isinstance(config, VideoVAEConfig)
    if direction == "decode":
        meter = _Meter(tile_thw, batch, dtype, causal=causal)
        _decode(meter, config)
        return meter
    factor_t, factor_h, factor_w = compression_thw(config)
    patch = math.isqrt(pixel_channels(config) // 3)
    time, height, width = tile_thw
    grid = (
        (time - 1) * factor_t + 1,
        height * factor_h // patch,
        width * factor_w // patch,
    )
    meter = _Meter(grid, batch, dtype, causal=causal)
    _encode(meter, config, folded=patch > 1)
    return meter


def _has_attention(config: VAEConfig) -> bool:
    return isinstance(config, ImageVAEConfig) or config.mid_block_attention


def _decode(meter: _Meter, config: VAEConfig) -> None:
    stages = decoder_stages(config)
    if meter.causal:  # what the first 1 x 1 x 1 convolution made of the latents
        meter.base = config.latent_channels * meter.volume
    first, last = stages[0].in_channels, stages[-1].out_channels
    meter.convolve(0, config.latent_channels, first)
    meter.middle(first, attention=_has_attention(config))
    for stage in stages:
        meter.stage(stage)
        if stage.resamples:
            meter.finer(stage.factor_thw, stage.out_channels)
    held = last * meter.volume
    meter.convolve(held, last, pixel_channels(config), copied=True, normed=True)


def _encode(meter: _Meter, config: VAEConfig, *, folded: bool) -> None:
    stages = encoder_stages(config)
    if folded:
        meter.base = pixel_channels(config) * meter.volume
    first, last = stages[0].in_channels, stages[-1].out_channels
    meter.convolve(0, pixel_channels(config), first)
    for stage in stages:
        meter.stage(stage)
        if stage.resamples:
            meter.coarser(stage.factor_thw, stage.out_channels)
    meter.middle(last, attention=_has_attention(config))
    held = last * meter.volume
    meter.convolve(held, last, 2 * config.latent_channels, copied=True, normed=True)
