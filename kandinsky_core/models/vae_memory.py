"""How much memory one tile of an autoencoder takes, from its dimensions alone.

Counts what is alive at the worst moment of each layer, in a forward pass without gradients.
Weights, input and result are not counted. tests/core/test_vae_tiling.py holds it against the
peak of real runs.

Letters: C channels, T H W grid of the layer at hand.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from ..config import VideoVAEConfig
from .vae_causal import PIECE_ELEMENTS
from .vae_layers import (
    Stage,
    VAEConfig,
    compression_thw,
    decoder_stages,
    encoder_stages,
    pixel_channels,
)

CAUSAL_WORK = 5
"""Copies of a causal convolution's input, or of one piece of it, besides input and output:
normalised, padded, twice re-ordered inside the library, one for edges and the piece's output."""
IMAGE_WORK = 2
"""The same for a 2-D convolution, which pads by itself."""
ATTENTION_COPIES = 8
"""Tensors of the middle grid's size alive in attention."""


class _Meter:
    """Tracks the grid through a network and the largest number of live elements."""

    def __init__(self, grid_thw: Sequence[int], batch: int, causal: bool) -> None:
        self.time, self.height, self.width = grid_thw
        self.batch = batch
        self.causal = causal
        self.peak = 0

    @property
    def frame(self) -> int:
        return self.batch * self.height * self.width

    def layer(self, live: int, work: int) -> None:
        """A layer with `live` channels held and a convolution over `work` channels."""
        elements = work * self.frame * self.time
        if self.causal and elements > PIECE_ELEMENTS:
            # a piece is at least one frame and the two before it
            elements = min(elements, PIECE_ELEMENTS + 2 * work * self.frame)
        copies = CAUSAL_WORK if self.causal else IMAGE_WORK
        self.peak = max(self.peak, live * self.frame * self.time + copies * elements)

    def resnets(self, stage: Stage) -> None:
        for i in range(stage.num_blocks):
            c_in = stage.out_channels if i else stage.in_channels
            self.layer(c_in + 2 * stage.out_channels, max(c_in, stage.out_channels))

    def middle(self, channels: int) -> None:
        self.layer(3 * channels, channels)
        self.peak = max(self.peak, ATTENTION_COPIES * channels * self.frame * self.time)

    def scale(self, factor_thw: Sequence[int], finer: bool) -> None:
        time, height, width = factor_thw
        if finer:
            self.time = (self.time - 1) * time + 1
            self.height, self.width = self.height * height, self.width * width
        else:
            self.time = (self.time - 1) // time + 1
            self.height, self.width = self.height // height, self.width // width


def tile_bytes(
    config: VAEConfig, tile_thw: Sequence[int], batch: int, dtype: torch.dtype, direction: str
) -> int:
    """Estimate the peak memory of one tile.

    Args:
        config: The autoencoder.
        tile_thw: Latent cells of the tile.
        batch: Clips at once.
        dtype: Of the network.
        direction: "encode" or "decode".

    Returns:
        Bytes.
    """
    causal = isinstance(config, VideoVAEConfig)
    if direction == "decode":
        meter = _Meter(tile_thw, batch, causal)
        _decode(meter, config)
    else:
        factor_t, factor_h, factor_w = compression_thw(config)
        patch = math.isqrt(pixel_channels(config) // 3)
        time, height, width = tile_thw
        grid = (
            (time - 1) * factor_t + 1,
            height * factor_h // patch,
            width * factor_w // patch,
        )
        meter = _Meter(grid, batch, causal)
        _encode(meter, config)
    return meter.peak * dtype.itemsize


def _decode(meter: _Meter, config: VAEConfig) -> None:
    stages = decoder_stages(config)
    meter.middle(stages[0].in_channels)
    for stage in stages:
        meter.resnets(stage)
        if stage.resamples:
            coarse = stage.out_channels * meter.frame * meter.time
            meter.scale(stage.factor_thw, finer=True)
            meter.layer(stage.out_channels, stage.out_channels)
            meter.peak = max(meter.peak, coarse + 2 * stage.out_channels * meter.frame * meter.time)
    last = stages[-1].out_channels
    # the unfolded pixels are a second copy of the output
    meter.layer(last + 2 * pixel_channels(config), last)


def _encode(meter: _Meter, config: VAEConfig) -> None:
    stages = encoder_stages(config)
    first = stages[0].in_channels
    meter.layer(first + 2 * pixel_channels(config), pixel_channels(config))
    for stage in stages:
        meter.resnets(stage)
        if stage.resamples:
            meter.layer(2 * stage.out_channels, stage.out_channels)
            meter.scale(stage.factor_thw, finer=False)
    meter.middle(stages[-1].out_channels)
