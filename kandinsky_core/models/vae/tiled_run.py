"""Run an autoencoder tile by tile, blend the seams, and hand out the result span by span of time.

Where two tiles overlap, the later one fades in linearly: 0, 1/n, ..., (n-1)/n over the n cells they
share. Differs: where four tiles meet, the weights here are the product of the two ramps, while
Diffusers fades one of the ramps twice (random weights, 4 x 4 latent tiles: 1.1 standard deviations
of the pixels at most, 0.005 on average). Everywhere else the numbers are the same.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise, product
from typing import NamedTuple

import torch
from torch import Tensor

from .causal import FactorTHW
from .tiling import Span, Tiles

logger = logging.getLogger(__name__)

OnTile = Callable[[int, int], None]
"""on_tile(done, total), called after every tile; may raise to cancel."""


class Tile(NamedTuple):
    """Latent cells of one tile."""

    time: Span
    height: Span
    width: Span


class _ShortageError(Exception):
    """Memory ran out; the cause is the error that said so."""


class _TileTooLargeError(_ShortageError):
    """In the network."""


class _SpanTooLongError(_ShortageError):
    """Where whole frames are put together; smaller tiles leave those as large as they are."""


def run_tiles(
    run: Callable[[Tile], Tensor],
    tiling: Tiles,
    factor_thw: FactorTHW,
    on_tile: OnTile | None = None,
) -> Iterator[Tensor]:
    """Run every tile of a tiling; where memory runs out, go on with smaller tiles.

    Smaller in space first where the network ran out of it, in time first where the frames that
    are put together did.

    Args:
        run: Gives the output (B, C, f, H, W) of a tile.
        tiling: The tiles.
        factor_thw: Output cells per latent cell (in time: after the first frame).
        on_tile: Progress.

    Yields:
        Output (B, C, f, H, W), every frame once and in order.
    """
    factor_t = factor_thw[0]
    tail: Tensor | None = None  # last frames of the span before, which this one fades in over
    index = finished = 0
    while index < len(tiling.time):
        total = finished + (len(tiling.time) - index) * tiling.tiles_per_span
        try:
            with _telling(_SpanTooLongError):
                chunk = _run_span(run, tiling, index, factor_thw, on_tile, finished, total)
                chunk, rest = _join_in_time(chunk, tail, tiling, index, factor_t)
        except _ShortageError as error:
            smaller = tiling.shrink(index, time_first=isinstance(error, _SpanTooLongError))
            if smaller is None:
                raise error.__cause__ from None  # type: ignore[misc]
            logger.warning(
                "memory ran out in the autoencoder at tiles of %s latent cells (t, h, w); it goes "
                "on with tiles of %s",
                _cells(tiling, index),
                _cells(smaller, index),
            )
            tiling = smaller
            continue
        tail = rest
        index += 1
        finished += tiling.tiles_per_span
        yield chunk


def _join_in_time(
    chunk: Tensor, tail: Tensor | None, tiling: Tiles, index: int, factor_t: int
) -> tuple[Tensor, Tensor | None]:
    """Fade a span in over the end of the span before, and keep its own end back for the next."""
    if tail is not None:
        shared = tail.shape[2]
        ramp = torch.arange(shared, device=chunk.device, dtype=chunk.dtype) / shared
        chunk[:, :, :shared] = torch.lerp(tail, chunk[:, :, :shared], ramp.view(-1, 1, 1))
    if index + 1 == len(tiling.time):
        return chunk, None
    keep = _first_frame(tiling.time[index + 1], factor_t) - _first_frame(
        tiling.time[index], factor_t
    )
    return chunk[:, :, :keep], chunk[:, :, keep:].clone()


def _cells(tiling: Tiles, index: int) -> str:
    """Return the largest tile from a span of time on."""
    time = max(span.length for span in tiling.time[index:])
    return " x ".join(map(str, (time, *tiling.largest_thw[1:])))


def _first_frame(span: Span, factor_t: int) -> int:
    """Return the index of the first output frame that a span of time accounts for.

    All spans but the first begin with a latent frame that is there for its past only.
    """
    return span.start * factor_t + 1 if span.start else 0


def _run_span(
    run: Callable[[Tile], Tensor],
    tiling: Tiles,
    index: int,
    factor_thw: FactorTHW,
    on_tile: OnTile | None,
    finished: int,
    total: int,
) -> Tensor:
    """Run the tiles of one span of time and blend them in space."""
    time = tiling.time[index]
    _, factor_h, factor_w = factor_thw
    out: Tensor | None = None
    tiles = product(
        zip(tiling.height, _overlaps(tiling.height), strict=True),
        zip(tiling.width, _overlaps(tiling.width), strict=True),
    )
    for count, ((height, shared_h), (width, shared_w)) in enumerate(tiles, start=finished + 1):
        with _telling(_TileTooLargeError):
            part = run(Tile(time, height, width))
        if time.start:
            part = part[:, :, 1:]
        if tiling.tiles_per_span == 1:
            out = part
        else:
            if out is None:
                rows, columns = tiling.height[-1].stop * factor_h, tiling.width[-1].stop * factor_w
                out = part.new_zeros(*part.shape[:3], rows, columns)
            fade_h, fade_w = (
                _fade(length, *(cells * factor for cells in shared), like=part)
                for length, shared, factor in zip(
                    part.shape[3:], (shared_h, shared_w), (factor_h, factor_w), strict=True
                )
            )
            area = out[:, :, :, height.scaled(factor_h), width.scaled(factor_w)]
            area.addcmul_(part, fade_h.unsqueeze(1) * fade_w)
        del part
        if on_tile is not None:
            on_tile(count, total)
    assert out is not None, tiling
    return out


def _overlaps(spans: Sequence[Span]) -> list[tuple[int, int]]:
    """Return the cells that each span shares with the one before it and with the one after."""
    shared = [0, *(before.stop - after.start for before, after in pairwise(spans)), 0]
    return list(pairwise(shared))


def _fade(length: int, lead: int, trail: int, *, like: Tensor) -> Tensor:
    """Return weights (length,): rising over the first `lead` cells, falling over the last
    `trail`."""
    weights = torch.ones(length, dtype=like.dtype, device=like.device)
    weights[:lead] *= torch.arange(lead).to(weights) / max(lead, 1)
    weights[length - trail :] *= 1 - torch.arange(trail).to(weights) / max(trail, 1)
    return weights


@contextmanager
def _telling(kind: type[_ShortageError]) -> Iterator[None]:
    """Turn any error that says that memory ran out into one of a kind."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if is_out_of_memory(error):
            raise kind from error
        raise


def is_out_of_memory(error: Exception) -> bool:
    """Return whether an error says that memory ran out, on whatever device."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    text = str(error).lower()  # CPU and other back ends raise a plain RuntimeError
    return "out of memory" in text or "can't allocate memory" in text
