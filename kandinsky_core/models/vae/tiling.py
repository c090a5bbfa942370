"""Which tiles an autoencoder works in, and how they follow from a memory budget.

Fewer, larger tiles are better: group norm looks at a whole tile, so each tile is normalised a
little differently, and every seam is blended. A seam in time costs more than one in space. So a
tiling takes the fewest tiles that fit the budget, and among those the fewest spans of time.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Literal, NamedTuple

import torch

from .layers import VAEConfig, compression_thw
from .memory import tensor_bytes, tile_bytes

DEFAULT_MEMORY_BUDGET = 8 * 2**30
"""Bytes. A fixed number, so that the same latents give the same pixels on every machine."""

SPACE_OVERLAP = 8
"""Latent cells that neighbouring tiles share (64 pixels, as in the reference)."""
TIME_OVERLAP = 1
"""Latent frames that neighbouring spans share besides the one for the past (4 frames)."""
MIN_SPACE_STRIDE = 8
"""Latent cells: no tile is smaller than this and the overlap (128 pixels)."""
MIN_TIME_STRIDE = 3
"""Latent frames: no span is shorter than this, the overlap and the past (17 frames)."""

Direction = Literal["encode", "decode"]


class Span(NamedTuple):
    """A range of latent cells along one axis."""

    start: int
    stop: int

    @property
    def length(self) -> int:
        return self.stop - self.start

    @property
    def slice(self) -> slice:
        return slice(self.start, self.stop)

    def scaled(self, factor: int) -> slice:
        return slice(self.start * factor, self.stop * factor)


@dataclass(frozen=True)
class Tiles:
    """Tiles of a latent grid: every combination of a span of each axis.

    Spans of time after the first begin with one latent frame whose own output is dropped: it is
    there because a causal network needs a past.
    """

    time: tuple[Span, ...]
    height: tuple[Span, ...]
    width: tuple[Span, ...]

    def __post_init__(self) -> None:
        for name, spans in (("height", self.height), ("width", self.width)):
            _check_spans(name, spans)
        _check_spans("time", _groups(self.time))

    @classmethod
    def whole(cls, grid_thw: Sequence[int]) -> Tiles:
        """Return one tile for everything."""
        time, height, width = (Span(0, size) for size in grid_thw)
        return cls((time,), (height,), (width,))

    @classmethod
    def strided(
        cls, grid_thw: Sequence[int], tile_thw: Sequence[int], stride_thw: Sequence[int]
    ) -> Tiles:
        """Return the tiles of a given size at given steps.

        Args:
            grid_thw: Latent cells of the clip.
            tile_thw: Largest tile; in time it includes the latent frame for the past.
            stride_thw: Latent cells from one tile to the next.
        """
        time = _stride_over(grid_thw[0] - 1, tile_thw[0] - 1, stride_thw[0])
        height, width = (
            _stride_over(*axis)
            for axis in zip(grid_thw[1:], tile_thw[1:], stride_thw[1:], strict=True)
        )
        return cls(_with_past(time), height, width)

    @classmethod
    def smallest(cls, grid_thw: Sequence[int]) -> Tiles:
        """Return the smallest tiles there are."""
        stride = (MIN_TIME_STRIDE, MIN_SPACE_STRIDE, MIN_SPACE_STRIDE)
        overlap = (TIME_OVERLAP + 1, SPACE_OVERLAP, SPACE_OVERLAP)
        tile = [sum(axis) for axis in zip(stride, overlap, strict=True)]
        return cls.strided(grid_thw, tile, stride)

    @property
    def tiles_per_span(self) -> int:
        """Tiles in one span of time."""
        return len(self.height) * len(self.width)

    @property
    def num_tiles(self) -> int:
        return len(self.time) * self.tiles_per_span

    @property
    def largest_thw(self) -> tuple[int, int, int]:
        """Latent cells of the largest tile."""
        time, height, width = (
            max(span.length for span in spans) for spans in (self.time, self.height, self.width)
        )
        return time, height, width

    def shrink(self, index: int, *, time_first: bool = False) -> Tiles | None:
        """Return a tiling with tiles half as large from span of time `index` on.

        Args:
            index: The first span that may change.
            time_first: Whether time is divided before space.

        Returns:
            The tiling, or None if the tiles are as small as they may be.
        """
        space, time = self._shrink_space(), self._shrink_time(index)
        return (time or space) if time_first else (space or time)

    def _shrink_space(self) -> Tiles | None:
        _, height, width = self.largest_thw
        if max(height, width) <= MIN_SPACE_STRIDE + SPACE_OVERLAP:
            return None
        axis = "height" if height >= width else "width"
        size, tile = getattr(self, axis)[-1].stop, max(height, width)
        stride = max(MIN_SPACE_STRIDE, math.ceil(tile / 2) - SPACE_OVERLAP)
        return replace(self, **{axis: _stride_over(size, stride + SPACE_OVERLAP, stride)})

    def _shrink_time(self, index: int) -> Tiles | None:
        groups = _groups(self.time)
        rest = groups[index]
        smallest = MIN_TIME_STRIDE + TIME_OVERLAP
        if rest.length <= smallest:
            return None
        tile = max(smallest, math.ceil(rest.length / 2))
        spans = _stride_over(groups[-1].stop - rest.start, tile, tile - TIME_OVERLAP)
        moved = (Span(span.start + rest.start, span.stop + rest.start) for span in spans)
        return replace(self, time=_with_past((*groups[:index], *moved)))


def fit_tiles(
    config: VAEConfig,
    latent_shape: Sequence[int],
    budget_bytes: int,
    dtype: torch.dtype,
    *,
    direction: Direction = "decode",
    must_fit: bool = True,
) -> Tiles:
    """Choose the fewest tiles whose estimated memory fits a budget.

    Args:
        config: The autoencoder.
        latent_shape: (B, C, T, H, W).
        budget_bytes: For activations and blending; weights, input and result are not counted.
        dtype: Of the network.
        direction: What the tiles are for.
        must_fit: Whether a budget that nothing fits is an error; otherwise the smallest tiles
            are tried, as estimates are on the safe side.

    Returns:
        The tiling; a single tile where everything fits.

    Raises:
        ValueError: Not even the smallest tiles fit, and `must_fit`.
    """
    batch, _, *grid = latent_shape
    best: Tiles | None = None
    least = math.inf
    for tiling in _candidates(grid):
        if best is not None and _cost(tiling) >= _cost(best):
            continue
        needed = tiled_bytes(config, tiling, batch, dtype, direction=direction)
        least = min(least, needed)
        if needed <= budget_bytes:
            best = tiling
            if tiling.num_tiles == 1:
                break
    if best is None and not must_fit:
        return Tiles.smallest(grid)
    if best is None:
        raise ValueError(
            f"memory_budget {_mib(budget_bytes)} MiB is too small to {direction} latents of "
            f"{' x '.join(map(str, grid))} in {str(dtype).removeprefix('torch.')}: the smallest "
            f"tiles need {_mib(least)} MiB; allow that much or make the clip smaller."
        )
    return best


def tiled_bytes(
    config: VAEConfig,
    tiling: Tiles,
    batch: int,
    dtype: torch.dtype,
    *,
    direction: Direction = "decode",
    with_library: bool = True,
) -> int:
    """Count what working through a tiling takes; weights, input and result aside.

    Args:
        config: The autoencoder.
        tiling: The tiles.
        batch: Clips at once.
        dtype: Of the network.
        direction: What the tiles are for.
        with_library: Whether to allow for what libraries take beside the tensors.

    Returns:
        Bytes.
    """
    count = tile_bytes if with_library else tensor_bytes
    time, height, width = tiling.largest_thw[0], tiling.height[-1].stop, tiling.width[-1].stop
    if direction == "decode":
        factor_t, factor_h, factor_w = compression_thw(config)
        cells = 3 * ((time - 1) * factor_t + 1) * height * factor_h * width * factor_w
    else:
        cells = 2 * config.latent_channels * time * height * width
    # in fp32: the span of time that is put together from tiles, and the one before it
    spans = (tiling.tiles_per_span > 1) + (len(tiling.time) > 1)
    return count(config, tiling.largest_thw, batch, dtype, direction) + 4 * batch * spans * cells


def _cost(tiling: Tiles) -> tuple[int, int, int]:
    return tiling.num_tiles, len(tiling.time), math.prod(tiling.largest_thw)


def _candidates(grid_thw: Sequence[int]) -> Iterator[Tiles]:
    """Yield every tiling of evenly sized tiles, from one tile to the smallest tiles."""
    time, height, width = grid_thw
    times = _even_spans(time - 1, TIME_OVERLAP, MIN_TIME_STRIDE)
    heights = _even_spans(height, SPACE_OVERLAP, MIN_SPACE_STRIDE)
    widths = _even_spans(width, SPACE_OVERLAP, MIN_SPACE_STRIDE)
    for spans_t in times:
        for spans_h in heights:
            for spans_w in widths:
                yield Tiles(_with_past(spans_t), spans_h, spans_w)


def _even_spans(size: int, overlap: int, min_stride: int) -> list[tuple[Span, ...]]:
    """Return the ways to cover an axis, by number of spans."""
    ways = {}
    for num in range(1, max(1, math.ceil((size - overlap) / min_stride)) + 1):
        stride = max(min_stride, math.ceil((size - overlap) / num))
        ways[stride] = _stride_over(size, stride + overlap, stride)
    return list(ways.values())


def _stride_over(size: int, tile: int, stride: int) -> tuple[Span, ...]:
    """Return the spans of `tile` cells every `stride`, the last cut off at `size`, until all is
    covered."""
    if size <= tile:
        return (Span(0, size),)
    if not 0 < stride <= tile <= 2 * stride:
        raise ValueError(
            f"tile {tile} with stride {stride}: the stride must be from half the tile to the "
            "whole of it; choose a stride in that range."
        )
    last = math.ceil((size - tile) / stride)
    return tuple(Span(i * stride, min(i * stride + tile, size)) for i in range(last + 1))


def _with_past(groups: Sequence[Span]) -> tuple[Span, ...]:
    """Return the spans of latent frames after the first -> spans with the frame before each."""
    return tuple(Span(start, stop + 1) for start, stop in groups)


def _groups(time: Sequence[Span]) -> tuple[Span, ...]:
    """Undo `_with_past`."""
    return tuple(Span(start, stop - 1) for start, stop in time)


def _check_spans(name: str, spans: Sequence[Span]) -> None:
    """Refuse spans that do not cover the axis in order, or of which three share a cell."""
    neighbours = all(a.start < b.start <= a.stop <= b.stop for a, b in pairwise(spans))
    thirds = all(a.stop <= c.start for a, c in zip(spans, spans[2:], strict=False))
    if not (spans and spans[0].start == 0 and neighbours and thirds):
        raise ValueError(
            f"{name} spans {[tuple(span) for span in spans]} of the tiling: they must begin at 0, "
            "leave no gap, and overlap their neighbours only; build them with Tiles.strided."
        )


def _mib(num_bytes: float) -> int:
    return math.ceil(num_bytes / 2**20)
