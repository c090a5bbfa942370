"""Block-sparse attention in plain PyTorch: gather the kept blocks, run dense attention on them.

Rows of blocks that keep equally many are computed together, so nothing is padded and no mask
is needed. Keys and values are gathered for a few rows at a time, into buffers that fit a
processor's cache; the backward pass gathers again instead of remembering.

Letters: B batch, N heads, S tokens, K head dim, Q blocks per head, M tokens per block, r rows
of a piece, n kept blocks of each of its rows.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from ..block_map import BlockMap
from .dense import attend_dense
from .workers import run_pieces

PIECE_BYTES = {"cpu": 2 << 20}
"""Keys and values gathered at a time, by device; small enough to stay in the cache."""
PIECE_BYTES_ELSEWHERE = 64 << 20
"""The same where the cost of a launch counts more."""


class Piece(NamedTuple):
    """Rows that keep equally many blocks."""

    rows: Tensor
    """Query blocks (r,), counted over batch and heads."""
    count: int
    """Blocks that each keeps, n."""


def attend_gathered(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    mask: Tensor | None = None,
    block_map: BlockMap | None = None,
) -> Tensor:
    """Compute the kept blocks only; arguments and result as in `Attend`.

    Heads that keep every block go to `attend_dense`, and so do calls with a mask of keys and
    gradients of keys beyond the map's.
    """
    wants_grad = torch.is_grad_enabled() and any(x.requires_grad for x in (q, k, v))
    has_more_keys = k.shape[2] > q.shape[2]
    if block_map is None or mask is not None or (has_more_keys and wants_grad):
        return attend_dense(q, k, v, mask=mask, block_map=block_map)
    kept = block_map.kept.flatten(0, 1)  # (B*N, Q, Q)
    full = kept.flatten(1).all(-1)  # (B*N,)
    if bool(full.all()):
        return attend_dense(q, k, v)
    q, k, v = (x.contiguous() for x in (q, k, v))
    shape, q, k, v = q.shape, q.flatten(0, 1), k.flatten(0, 1), v.flatten(0, 1)  # (B*N, S, K)
    if not bool(full.any()):
        return _Gathered.apply(q, k, v, kept, block_map.block_size).view(shape)
    dense, sparse = full.nonzero()[:, 0], (~full).nonzero()[:, 0]
    out_dense = attend_dense(q[dense][None], k[dense][None], v[dense][None])[0]
    out_sparse = _Gathered.apply(
        q[sparse], k[sparse], v[sparse], kept[sparse], block_map.block_size
    )
    out = torch.cat([out_dense, out_sparse])  # (B*N, S, K)
    return out[torch.cat([dense, sparse]).argsort()].view(shape)


class _Gathered(torch.autograd.Function):
    """Attention over kept blocks of q (heads, S, K), k and v (heads, L, K), kept (heads, Q, Q)."""

    @staticmethod
    def forward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any, q: Tensor, k: Tensor, v: Tensor, kept: Tensor, block_size: int
    ) -> Tensor:
        ctx.save_for_backward(q, k, v, kept)
        ctx.block_size = block_size
        out = torch.zeros_like(q)
        length = q.shape[1]
        more_k, more_v = k[:, length:], v[:, length:]  # (heads, L - S, K)
        k, v = k[:, :length].contiguous(), v[:, :length].contiguous()
        q, k, v, rows = (x.view(-1, block_size, x.shape[-1]) for x in (q, k, v, out))
        kept_rows = kept.flatten(0, 1)  # (heads*Q, Q)
        limit = _piece_bytes(q.device.type)
        pieces = _pieces(kept_rows.sum(-1), _bytes_per_block(k), limit, empty=more_k.shape[1] > 0)
        gathered = max((piece.rows.numel() * piece.count for piece in pieces), default=0)
        run_pieces(
            pieces,
            # q, k, v, rows: (heads*Q, M, K)
            lambda: _forward_worker(q, k, v, rows, kept_rows, gathered, more_k, more_v),
            parallel=q.device.type == "cpu",
        )
        return out

    @staticmethod
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any, grad_out: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, None, None]:
        q, k, v, kept = ctx.saved_tensors
        size, wide = ctx.block_size, torch.promote_types(q.dtype, torch.float32)
        shape, dtype = q.shape, q.dtype
        q, k, v, grad_out = (
            x.reshape(-1, size, x.shape[-1]) for x in (q, k, v, grad_out)
        )  # (heads*Q, M, K)
        grads = grad_q, grad_k, grad_v = [torch.zeros_like(x, dtype=wide) for x in (q, k, v)]
        kept_rows = kept.flatten(0, 1)
        counts = kept.sum(-1)  # (heads, Q)
        per_block = _bytes_per_block(k) + 3 * size * size * wide.itemsize
        # one head a thread: rows of one head add to the same gradients of keys
        heads = [
            _pieces(row, per_block, _piece_bytes(q.device.type), head * row.numel())
            for head, row in enumerate(counts)
        ]
        heads.sort(key=lambda pieces: -sum(p.rows.numel() * p.count for p in pieces))
        run_pieces(
            heads,
            lambda: _backward_worker(q, k, v, grad_out, grad_q, grad_k, grad_v, kept_rows),
            parallel=q.device.type == "cpu",
        )
        grad_q, grad_k, grad_v = (grad.to(dtype).view(shape) for grad in grads)
        return grad_q, grad_k, grad_v, None, None


def _bytes_per_block(k: Tensor) -> int:
    """Of keys and values, from keys (heads*Q, M, K)."""
    return 2 * k[0].numel() * k.element_size()


def _piece_bytes(device_type: str) -> int:
    return PIECE_BYTES.get(device_type, PIECE_BYTES_ELSEWHERE)


def gathered_bytes(
    heads: int,
    blocks: int,
    block_size: int,
    head_dim: int,
    item: int,
    *,
    density: float,
    device_type: str,
) -> int:
    """Count what is gathered at a time in a forward pass, on one thread.

    Args:
        heads: Of all rows of the batch, B*N.
        blocks: Q.
        block_size: M.
        head_dim: K.
        item: Bytes of a number of the queries.
        density: Share of blocks that are kept, in [0, 1].
        device_type: Where it runs, as torch names it.

    Returns:
        Bytes of the keys and values of a piece, and of its queries and results.
    """
    per_block = 2 * block_size * head_dim * item
    kept = max(1.0, density * blocks)  # of each row, which is never divided
    piece = min(max(_piece_bytes(device_type), kept * per_block), heads * blocks * kept * per_block)
    return int(piece * (1 + 1 / kept))


def _pieces(
    counts: Tensor, bytes_per_block: int, limit: int, first_row: int = 0, *, empty: bool = False
) -> list[Piece]:
    """Group rows by how many blocks they keep (R,), within a limit of bytes, heaviest first.

    Rows that keep none are left out unless `empty`.
    """
    order = counts.argsort(descending=True, stable=True)
    sizes, lengths = counts[order].unique_consecutive(return_counts=True)
    pieces: list[Piece] = []
    for rows, count in zip(
        (order + first_row).split(lengths.tolist()), sizes.tolist(), strict=True
    ):
        if count or empty:
            at_once = max(1, limit // (max(count, 1) * bytes_per_block))
            parts = rows.tensor_split(math.ceil(rows.numel() / at_once))
            pieces += [Piece(part, count) for part in parts]
    return pieces


def _columns(piece: Piece, kept_rows: Tensor) -> Tensor:
    """Kept key blocks (r * n,) of a piece, counted over batch and heads."""
    num_blocks = kept_rows.shape[1]
    columns = kept_rows.index_select(0, piece.rows).nonzero()[:, 1]
    columns = columns.view(piece.rows.numel(), piece.count)
    first = piece.rows.div(num_blocks, rounding_mode="floor") * num_blocks  # of the row's head
    return (columns + first[:, None]).flatten()


def _forward_worker(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    kept_rows: Tensor,
    gathered: int,
    more_k: Tensor,
    more_v: Tensor,
) -> Callable[[Piece], None]:
    """Writes the rows of a piece to out; q, k, v, out (heads*Q, M, K), more (heads, E, K)."""
    num_blocks = kept_rows.shape[1]
    # allocated once: large allocations cost page faults every time
    keys, values = (x.new_empty(gathered, *x.shape[1:]) for x in (k, v))

    def run(piece: Piece) -> None:
        columns = _columns(piece, kept_rows)
        queries = q.index_select(0, piece.rows)[:, None]  # (r, 1, M, K)
        here_k, here_v = (
            torch.index_select(x, 0, columns, out=buffer[: columns.numel()]).view(
                piece.rows.numel(), 1, piece.count * x.shape[1], x.shape[2]
            )
            for x, buffer in ((k, keys), (v, values))
        )  # (r, 1, n * M, K)
        if more_k.shape[1]:
            heads = piece.rows.div(num_blocks, rounding_mode="floor")
            here_k, here_v = (
                torch.cat([here, more.index_select(0, heads)[:, None]], dim=2)
                for here, more in ((here_k, more_k), (here_v, more_v))
            )  # (r, 1, n * M + E, K)
        rows = F.scaled_dot_product_attention(queries, here_k, here_v)
        out.index_copy_(0, piece.rows, rows[:, 0])

    return run


def _backward_worker(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    grad_out: Tensor,
    grad_q: Tensor,
    grad_k: Tensor,
    grad_v: Tensor,
    kept_rows: Tensor,
) -> Callable[[list[Piece]], None]:
    """Adds the gradients of the pieces of one head; all but kept_rows are (heads*Q, M, K)."""
    scale = 1 / math.sqrt(q.shape[-1])

    def run(pieces: list[Piece]) -> None:
        for piece in pieces:
            columns = _columns(piece, kept_rows)
            num_rows = piece.rows.numel()
            queries, grad = (x.index_select(0, piece.rows) for x in (q, grad_out))  # (r, M, K)
            keys, values = (
                x.index_select(0, columns).view(num_rows, -1, x.shape[-1]) for x in (k, v)
            )  # (r, n * M, K)
            scores = (queries @ keys.transpose(1, 2)).to(grad_q.dtype).mul_(scale)
            weights = torch.softmax(scores, dim=-1)  # (r, M, n * M)
            grad_weights = (grad @ values.transpose(1, 2)).to(weights.dtype)
            grad_values = weights.to(grad.dtype).transpose(1, 2) @ grad  # (r, n * M, K)
            # the derivative of softmax
            grad_weights -= (grad_weights * weights).sum(-1, keepdim=True)
            grad_scores = grad_weights.mul_(weights).mul_(scale).to(q.dtype)
            grad_keys = grad_scores.transpose(1, 2) @ queries  # (r, n * M, K)
            grad_q.index_copy_(0, piece.rows, (grad_scores @ keys).to(grad_q.dtype))
            for total, part in ((grad_k, grad_keys), (grad_v, grad_values)):
                total.index_add_(0, columns, part.view(-1, *total.shape[1:]).to(total.dtype))

    return run
