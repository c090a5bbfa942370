"""Where the visual tokens stand among those of an attention of another pack's network.

What a network is called with tells how many tokens of each kind there must be; the number in an
attention has to equal that exactly. Nearly right is not enough: reference frames stand before
the visual tokens, and tiles that begin at the wrong token are silently wrong.

Letters: B batch, C channels, T H W latent grid, L text tokens.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from comfy.ldm.hunyuan_video.model import HunyuanVideo
from torch import Tensor

from ....kandinsky_core.attention import Nabla, Tiling

FEWEST, WANTED, MOST = 32, math.prod(Nabla().tile_thw), 128
"""Tokens of a tile that is chosen here: coarser ones see too little, finer ones cost too much."""
LONGEST = 4
"""Longer side of such a tile against its shorter one."""
SHAPE_WEIGHT = 0.5
"""How much a tile's being no square counts against its being no 64 tokens, octave by octave."""


@dataclass(frozen=True)
class Place:
    """Tokens of a visual self-attention, those of the latent in raster order."""

    grid_thw: tuple[int, int, int]
    """Visual tokens per axis."""
    joint_text: int
    """Tokens of text in the same attention; 0 where text has an attention of its own."""
    text_first: bool
    """Whether they stand before the visual ones."""
    texts: frozenset[int]
    """Numbers of tokens that text alone may have."""

    @property
    def visual(self) -> int:
        """Number of visual tokens."""
        return math.prod(self.grid_thw)

    @property
    def length(self) -> int:
        """Number of all tokens."""
        return self.visual + self.joint_text

    def split(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Split (B, N, length, K) into visual tokens and text."""
        first, last = x.tensor_split([self.joint_text if self.text_first else self.visual], dim=2)
        return (last, first) if self.text_first else (first, last)

    def join(self, visual: Tensor, text: Tensor) -> Tensor:
        """Undo `split`."""
        return torch.cat([text, visual] if self.text_first else [visual, text], dim=2)


def find_place(
    network: Any,
    patch_thw: Sequence[int],
    latents: Tensor,
    text: Tensor | None,
    extra: Mapping[str, Any],
) -> Place:
    """Read the tokens of a call off its arguments.

    Args:
        network: The host's diffusion model.
        patch_thw: Latent cells of one token per axis.
        latents: (B, C, T, H, W), or (B, C, H, W) for an image; padded to whole patches by the
            network.
        text: (B, L, D) of the prompt.
        extra: Other conditions of the call, by the host's names.

    Returns:
        The place.

    Raises:
        ValueError: The tokens cannot be told; the sentence says why.
    """
    if latents.ndim not in (4, 5):
        raise ValueError(f"a latent of shape {tuple(latents.shape)} has no height and width")
    cells = latents.shape[2:] if latents.ndim == 5 else (1, *latents.shape[2:])
    t, h, w = (-(-size // patch) for size, patch in zip(cells, patch_thw, strict=True))
    count = 0 if text is None else text.shape[1]
    image = extra.get("clip_fea")
    texts = frozenset({count, *([] if image is None else [image.shape[1]])})
    if not isinstance(network, HunyuanVideo):
        return Place((t, h, w), 0, False, texts)
    if extra.get("ref_latent") is not None:
        raise ValueError("tokens of a reference stand among the visual ones")
    glyphs = extra.get("txt_byt5") if network.byt5_in is not None else None
    joint = count + sum(each.shape[1] for each in (image, glyphs) if each is not None)
    # newer hosts have no such attribute, and text first
    text_first = not getattr(network.double_blocks[0], "flipped_img_txt", False)
    return Place((t, h, w), joint, text_first, texts)


def fit_tile(grid_thw: tuple[int, int, int], patch_thw: Sequence[int]) -> tuple[int, int, int]:
    """Choose the tile of one latent frame nearest to 8 x 8 tokens that divides a grid.

    Args:
        grid_thw: Tokens per axis.
        patch_thw: Latent cells of one token per axis; the error counts in cells.

    Returns:
        Tokens of a tile per axis.

    Raises:
        ValueError: None of a usable size and shape does.
    """
    _, height, width = grid_thw
    fitting = [
        (1, h, w)
        for h in range(1, height + 1)
        for w in range(1, width + 1)
        if height % h == 0
        and width % w == 0
        and FEWEST <= h * w <= MOST
        and max(h, w) <= LONGEST * min(h, w)
    ]
    if not fitting:
        size = height * patch_thw[1], width * patch_thw[2]
        raise ValueError(
            f"latent size {size} (h, w) divides into no tiles of {FEWEST} to {MOST} tokens, "
            f"multiples of {8 * patch_thw[1]} and {8 * patch_thw[2]} do"
        )

    def unlikeness(tile: tuple[int, int, int]) -> float:
        _, h, w = tile
        return abs(math.log2(h * w / WANTED)) + SHAPE_WEIGHT * abs(math.log2(h / w))

    return min(fitting, key=unlikeness)


def divide(place: Place, patch_thw: Sequence[int], tile_thw: tuple[int, int, int] | None) -> Tiling:
    """Divide the visual tokens into tiles; None as `tile_thw` chooses one that fits.

    Raises:
        ValueError: They do not divide; the sentence counts in latent cells.
    """
    if tile_thw is None:
        tile_thw = fit_tile(place.grid_thw, patch_thw)
    return Tiling.of(place.grid_thw, tile_thw, patch_thw)
