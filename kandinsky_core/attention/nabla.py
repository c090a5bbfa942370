"""NABLA: which blocks to keep is read off a coarse attention map, anew for every head and step.

Queries and keys are averaged over blocks; the softmax of their products is a small attention
map; of each of its rows the largest entries that together cover a share P of the row are kept,
united with a sliding window of tiles. The map is data; a backend of `attend` consumes it.

Source: arXiv 2507.13546; kandinskylab/kandinsky-5 and diffusers 0.40 (`nablaT_v2`), whose map
this equals bit for bit, computed with one sort instead of three and in pieces.
Letters: B batch, N heads, S tokens, K head dim, Q blocks.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from .api import Attend
from .block_map import BlockMap
from .tiles import Tiling, sliding_window

WORK_BYTES = 64 << 20
"""What the pieces of a map in the making may take, as far as one row and one head allow."""


@dataclass(frozen=True)
class MapReport:
    """What NABLA decided in one self-attention."""

    layer: int
    """Number of the visual block, from 0."""
    block_map: BlockMap
    """What was attended to."""
    density: Tensor
    """Share of blocks that each head keeps by NABLA's rule, fp32 (B, N); the map of one that
    `Nabla.dense_above` made dense keeps all."""


@dataclass(frozen=True)
class Nabla:
    """How to sparsify the visual self-attention of a network."""

    cdf_threshold: float = 0.9
    """P, the share of a row's coarse attention that the kept blocks cover, in [0, 1]; higher is
    denser, 1 keeps everything."""
    tile_thw: tuple[int, int, int] = (1, 8, 8)
    """Tokens of one block per axis (t, h, w)."""
    sta_window_thw: tuple[int, int, int] | None = (11, 3, 3)
    """Sliding window in tiles, always kept; None keeps none."""
    min_blocks: int = 0
    """Blocks that every row keeps at least, its largest ones; 0 leaves it to P."""
    dense_above: float | None = None
    """Heads that would keep more than this share of their blocks attend to everything instead;
    None never does that."""
    observe: Callable[[MapReport], None] | None = None
    """Called with every map."""

    def __post_init__(self) -> None:
        for name, value in (("P", self.cdf_threshold), ("dense_above", self.dense_above)):
            if value is not None and not 0 <= value <= 1:
                raise ValueError(f"NABLA's {name} is {value}: it must be between 0 and 1.")
        if min(*self.tile_thw, *(self.sta_window_thw or (1,))) < 1 or self.min_blocks < 0:
            raise ValueError(
                f"NABLA's tile {self.tile_thw}, window {self.sta_window_thw} and min_blocks "
                f"{self.min_blocks} must be positive; min_blocks 0 and window None turn them off."
            )

    def layers(
        self, num_layers: int, attend: Attend, tiling: Tiling, device: torch.device
    ) -> list[Attend]:
        """Return the self-attention of each layer over tokens in tile order, computed by
        `attend`."""
        window = None
        if self.sta_window_thw is not None:
            window = sliding_window(tiling.grid_thw, self.sta_window_thw, device)
        return [NablaAttention(self, attend, tiling, window, layer) for layer in range(num_layers)]

    def choose(
        self, q: Tensor, k: Tensor, tiling: Tiling, window: Tensor | None, layer: int = 0
    ) -> BlockMap:
        """Return the map of queries and keys (B, N, S, K) in tile order, with all options
        applied."""
        block_size = math.prod(tiling.tile_thw)
        kept = top_p_blocks(q, k, block_size, self.cdf_threshold, min_blocks=self.min_blocks)
        if window is not None:
            kept |= window
        block_map = BlockMap(kept, tiling.tile_thw, tiling.grid_thw)
        if self.dense_above is None and self.observe is None:
            return block_map
        density = block_map.density
        if self.dense_above is not None:
            kept = kept | (density > self.dense_above)[:, :, None, None]
            block_map = BlockMap(kept, tiling.tile_thw, tiling.grid_thw)
        if self.observe is not None:
            self.observe(MapReport(layer, block_map, density))
        return block_map


@dataclass(frozen=True)
class NablaAttention:
    """The self-attention of one layer: `Attend` that makes the map itself."""

    nabla: Nabla
    """The rule by which blocks are kept."""
    attend: Attend
    """The backend that computes attention over the kept blocks."""
    tiling: Tiling
    """How the tokens (B, S, D) are divided into tiles."""
    window: Tensor | None
    """Boolean (Q, Q): blocks that are always kept."""
    layer: int
    """Number of the visual block."""

    def __call__(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        *,
        mask: Tensor | None = None,
        block_map: BlockMap | None = None,
    ) -> Tensor:
        """Attend among tokens in tile order; arguments and result as in `Attend`."""
        assert block_map is None, "NABLA makes the map itself"
        q, k = q.contiguous(), k.contiguous()  # both the map and most backends need it
        block_map = self.nabla.choose(q, k, self.tiling, self.window, self.layer)
        return self.attend(q, k, v, mask=mask, block_map=block_map)


@torch.no_grad()
def top_p_blocks(
    q: Tensor,
    k: Tensor,
    block_size: int,
    cdf_threshold: float,
    *,
    min_blocks: int = 0,
    work_bytes: int = WORK_BYTES,
) -> Tensor:
    """Return blocks whose coarse attention covers a share of each row.

    Entries of a row are summed from the smallest up and kept from where the sum reaches 1 - P.
    As in the reference everything happens in the dtype of q: in bf16 the sums are rounded.

    Args:
        q: Queries (B, N, S, K).
        k: Keys (B, N, S, K).
        block_size: Tokens per block; S is a multiple.
        cdf_threshold: P in [0, 1].
        min_blocks: Blocks to keep in every row at least.
        work_bytes: Memory beside inputs and result; one head's coarse map is the least.

    Returns:
        Boolean (B, N, Q, Q).
    """
    heads, blocks = math.prod(q.shape[:2]), q.shape[2] // block_size
    kept = torch.zeros(heads, blocks, blocks, dtype=torch.bool, device=q.device)
    for some, rows, coarse in coarse_attention(q, k, block_size, work_bytes=work_bytes):
        values, order = coarse.sort(-1)
        covers = values.cumsum_(-1) >= 1 - cdf_threshold
        if min_blocks:
            covers[..., -min_blocks:] = True
        kept[some, rows].scatter_(-1, order, covers)
    return kept.unflatten(0, q.shape[:2])


def coarse_attention(
    q: Tensor, k: Tensor, block_size: int, *, work_bytes: int = WORK_BYTES
) -> Iterator[tuple[slice, slice, Tensor]]:
    """Compute attention among means of blocks, in the dtype of q.

    Args:
        q: Queries (B, N, S, K).
        k: Keys (B, N, S, K).
        block_size: Tokens per block; S is a multiple.
        work_bytes: Memory beside the inputs; the products of one head are the least.

    Yields:
        Which heads of all B*N and which of their Q rows, and these rows (heads, rows, Q), whose
        sums are 1.
    """
    heads = math.prod(q.shape[:2])
    blocks, head_dim = q.shape[2] // block_size, q.shape[3]
    assert q.shape == k.shape, (q.shape, k.shape)
    assert blocks * block_size == q.shape[2], (q.shape, block_size)
    # contiguous and whole heads at once: sums and products then round as the reference's
    pooled_q, pooled_k = (
        x.contiguous().view(heads, blocks, block_size, head_dim).mean(-2) for x in (q, k)
    )  # (B*N, Q, K)
    heads_at_once, rows_at_once = _pieces_of_map(heads, blocks, q.element_size(), work_bytes)
    for head in range(0, heads, heads_at_once):
        some = slice(head, head + heads_at_once)
        products = pooled_q[some] @ pooled_k[some].transpose(-2, -1)  # (heads, Q, Q)
        for row in range(0, blocks, rows_at_once):
            rows = slice(row, row + rows_at_once)
            yield some, rows, torch.softmax(products[:, rows] / math.sqrt(head_dim), dim=-1)


def map_bytes(heads: int, blocks: int, head_dim: int, item: int) -> int:
    """Count the tensors that making a map takes beside queries, keys and the map.

    Args:
        heads: Of all rows of the batch, B*N.
        blocks: Q.
        head_dim: K.
        item: Bytes of a number of the queries.

    Returns:
        Bytes.
    """
    some, rows = _pieces_of_map(heads, blocks, item, WORK_BYTES)
    pooled = 2 * heads * blocks * head_dim * item
    products = some * blocks * blocks * item
    return pooled + products + some * min(rows, blocks) * _row_bytes(blocks, item)


def _row_bytes(blocks: int, item: int) -> int:
    """Count what there is of a row: products, probabilities, sorted values, 64-bit indices, its
    mask."""
    return 4 * blocks * item + 9 * blocks


def _pieces_of_map(heads: int, blocks: int, item: int, work_bytes: int) -> tuple[int, int]:
    """Return how many heads, and rows of each of them, are made at once."""
    heads_at_once = min(heads, max(1, work_bytes // 4 // (blocks * blocks * item)))
    return heads_at_once, max(1, work_bytes // (heads_at_once * _row_bytes(blocks, item)))
