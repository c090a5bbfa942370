"""Tile order: tokens of one (t, h, w) tile stand together, tiles in raster order.

NABLA and sliding-tile attention work on blocks of neighbouring tokens, so that a block is a
cuboid of the video and not a piece of a row. Source: arXiv 2507.13546, section 3;
kandinskylab/kandinsky-5 (`fractal_flatten`, `fast_sta_nabla`).
Letters: B batch, S tokens, Q tiles.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from einops import rearrange
from torch import Tensor

_AXES = ("t", "h", "w")


class Tiling(NamedTuple):
    """How a grid of tokens divides into tiles."""

    grid_thw: tuple[int, int, int]
    """Tiles per axis (t, h, w)."""
    tile_thw: tuple[int, int, int]
    """Tokens of one tile per axis."""

    @classmethod
    def of(
        cls,
        tokens_thw: Sequence[int],
        tile_thw: tuple[int, int, int],
        patch_thw: Sequence[int] = (1, 1, 1),
    ) -> Tiling:
        """Divide a grid of tokens.

        Args:
            tokens_thw: Tokens per axis.
            tile_thw: Tokens of one tile per axis.
            patch_thw: Latent cells of one token per axis; errors count in cells.

        Returns:
            The tiling.

        Raises:
            ValueError: A side is not a whole number of tiles; the sentence names the nearest
                that are.
        """
        wrong = []
        for axis, tokens, tile, patch in zip(_AXES, tokens_thw, tile_thw, patch_thw, strict=True):
            if tokens % tile:
                below, above = tokens // tile * tile, (tokens // tile + 1) * tile
                near = " and ".join(str(n * patch) for n in (below, above) if n)
                wrong.append(
                    f"{axis} {tokens * patch} must be a multiple of {tile * patch}, "
                    f"the nearest that fit: {near}"
                )
        if wrong:
            size = tuple(n * p for n, p in zip(tokens_thw, patch_thw, strict=True))
            raise ValueError(
                f"latent size {size} (t, h, w) does not divide into NABLA tiles of {tile_thw} "
                f"tokens: {'; '.join(wrong)} (or use dense attention, which takes this size)"
            )
        t, h, w = (n // tile for n, tile in zip(tokens_thw, tile_thw, strict=True))
        return cls((t, h, w), tile_thw)

    def tile(self, x: Tensor) -> Tensor:
        """Put raster order (t slowest, w fastest) into tile order; x (B, S, D)."""
        (gt, gh, gw), (t, h, w) = self
        return rearrange(
            x,
            "b (gt t gh h gw w) d -> b (gt gh gw t h w) d",
            gt=gt, gh=gh, gw=gw, t=t, h=h, w=w,
        )  # fmt: skip

    def untile(self, x: Tensor) -> Tensor:
        """Put tile order back into raster order; x (B, S, D). Undoes `tile` exactly."""
        (gt, gh, gw), (t, h, w) = self
        return rearrange(
            x,
            "b (gt gh gw t h w) d -> b (gt t gh h gw w) d",
            gt=gt, gh=gh, gw=gw, t=t, h=h, w=w,
        )  # fmt: skip


def sliding_window(
    grid_thw: Sequence[int],
    window_thw: Sequence[int],
    device: torch.device | str | None = None,
) -> Tensor:
    """Return tiles within a window around each tile, cut off at the borders (STA).

    Args:
        grid_thw: Tiles per axis.
        window_thw: Width of the window per axis, in tiles; an even one counts as one more.
        device: Where to make it.

    Returns:
        Boolean (Q, Q), True where |row - column| <= width // 2 along every axis.
    """
    positions = torch.cartesian_prod(*(torch.arange(n, device=device) for n in grid_thw))  # (Q, 3)
    near = torch.ones((), dtype=torch.bool, device=device)
    for place, width in zip(positions.unbind(-1), window_thw, strict=True):
        near = near & ((place[:, None] - place[None, :]).abs() <= width // 2)
    return near  # (Q, Q)
