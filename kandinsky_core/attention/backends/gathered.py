"""Block-sparse attention in plain PyTorch: gather the kept blocks, run dense attention on them.

On a CPU, rows of blocks that keep equally many are computed together, so nothing is padded and no
mask is needed. Keys and values are gathered for a few rows at a time, into buffers that fit a
processor's cache; the backward pass gathers again instead of remembering. On other devices pieces
are larger, rows that keep nearly equally many share one, padded under a mask, and the host waits
for the device once.

Letters: B batch, N heads, S tokens, K head dim, Q blocks per head, M tokens per block, r rows
of a piece, n kept blocks of each of its rows.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from ..block_map import BlockMap
from ..full_heads import full_heads_apart
from .dense import attend_dense
from .workers import run_pieces

PIECE_BYTES = {"cpu": 2 << 20}
"""Keys and values gathered at a time, by device; small enough to stay in the cache."""
PIECE_BYTES_ELSEWHERE = 64 << 20
"""The same where the cost of a launch counts more."""
SLACK_ELSEWHERE = 1 / 8
"""Share of a piece's largest row that its smallest may lack, where pieces are padded."""


class Piece(NamedTuple):
    """Rows that keep equally many blocks, or nearly."""

    rows: Tensor
    """Query blocks (r,), counted over batch and heads."""
    count: int
    """Blocks that the first keeps, n; none keeps more."""
    is_padded: bool
    """Whether some keep fewer."""


@full_heads_apart
def attend_gathered(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    mask: Tensor | None = None,
    block_map: BlockMap | None = None,
) -> Tensor:
    """Compute the kept blocks only; arguments and result as in `Attend`.

    Calls with a mask of keys, and gradients of keys beyond the map's, go to `attend_dense`.
    """
    wants_grad = torch.is_grad_enabled() and any(x.requires_grad for x in (q, k, v))
    has_more_keys = k.shape[2] > q.shape[2]
    assert block_map is not None
    if mask is not None or (has_more_keys and wants_grad):
        return attend_dense(q, k, v, mask=mask, block_map=block_map)
    heads = [x.contiguous().flatten(0, 1) for x in (q, k, v)]  # (B*N, S or L, K)
    kept = block_map.kept.flatten(0, 1)  # (B*N, Q, Q)
    counts = block_map.row_counts.flatten(0, 1)  # (B*N, Q)
    return _Gathered.apply(*heads, kept, counts, block_map.block_size).view(q.shape)


class _Gathered(torch.autograd.Function):
    """Attention over kept blocks of q (heads, S, K), k and v (heads, L, K), kept (heads, Q, Q).

    counts (heads, Q) says how many blocks each row keeps.
    """

    @staticmethod
    def forward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any, q: Tensor, k: Tensor, v: Tensor, kept: Tensor, counts: Tensor, block_size: int
    ) -> Tensor:
        ctx.save_for_backward(q, k, v, kept, counts)
        ctx.block_size = block_size
        out = torch.zeros_like(q)
        length = q.shape[1]
        more_k, more_v = k[:, length:], v[:, length:]  # (heads, L - S, K)
        k, v = k[:, :length].contiguous(), v[:, :length].contiguous()
        q, k, v, rows = (x.view(-1, block_size, x.shape[-1]) for x in (q, k, v, out))
        kept_rows = kept.flatten(0, 1)  # (heads*Q, Q)
        (pieces,) = _pieces(counts.view(1, -1), _bytes_per_block(k), empty=more_k.shape[1] > 0)
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
    ) -> tuple[Tensor, Tensor, Tensor, None, None, None]:
        q, k, v, kept, counts = ctx.saved_tensors
        size, wide = ctx.block_size, torch.promote_types(q.dtype, torch.float32)
        shape, dtype = q.shape, q.dtype
        q, k, v, grad_out = (
            x.reshape(-1, size, x.shape[-1]) for x in (q, k, v, grad_out)
        )  # (heads*Q, M, K)
        grads = grad_q, grad_k, grad_v = [torch.zeros_like(x, dtype=wide) for x in (q, k, v)]
        kept_rows = kept.flatten(0, 1)
        per_block = _bytes_per_block(k) + 3 * size * size * wide.itemsize
        # one head a thread: rows of one head add to the same gradients of keys
        heads = _pieces(counts, per_block)
        heads.sort(key=lambda pieces: -sum(p.rows.numel() * p.count for p in pieces))
        run_pieces(
            heads,
            lambda: _backward_worker(q, k, v, grad_out, grad_q, grad_k, grad_v, kept_rows),
            parallel=q.device.type == "cpu",
        )
        grad_q, grad_k, grad_v = (grad.to(dtype).view(shape) for grad in grads)
        return grad_q, grad_k, grad_v, None, None, None


def _bytes_per_block(k: Tensor) -> int:
    """Count the bytes of a block's keys and values, from keys (heads*Q, M, K)."""
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


def _pads(device_type: str) -> bool:
    """Return whether launches and waiting for the device cost more than padding."""
    return device_type != "cpu"


def _pieces(counts: Tensor, bytes_per_block: int, *, empty: bool = False) -> list[list[Piece]]:
    """Group the rows of each head by how many blocks they keep (heads, Q), heaviest first.

    Rows that keep none are left out unless `empty`. The host waits for the device once.
    """
    device_type = counts.device.type
    limit = _piece_bytes(device_type)
    slack = SLACK_ELSEWHERE if _pads(device_type) else 0.0
    ordered, order = counts.sort(dim=-1, descending=True, stable=True)
    order += torch.arange(len(counts), device=counts.device)[:, None] * counts.shape[1]
    heads: list[list[Piece]] = []
    for rows, sizes in zip(order, ordered.tolist(), strict=True):
        pieces: list[Piece] = []
        first = 0
        while first < len(sizes) and (sizes[first] or empty):
            least = sizes[first] * (1 - slack)
            last = bisect_right(sizes, -least, lo=first, key=lambda size: -size)
            at_once = max(1, limit // (max(sizes[first], 1) * bytes_per_block))
            for part in rows[first:last].tensor_split(math.ceil((last - first) / at_once)):
                end = first + part.numel()
                pieces.append(Piece(part, sizes[first], sizes[first] != sizes[end - 1]))
                first = end
        heads.append(pieces)
    return heads


def _columns(piece: Piece, kept_rows: Tensor) -> tuple[Tensor, Tensor | None]:
    """Return the kept key blocks (r * n,) of a piece, counted over batch and heads, and which are
    no padding."""
    num_blocks = kept_rows.shape[1]
    kept = kept_rows.index_select(0, piece.rows)  # (r, Q)
    is_kept = None
    if _pads(kept.device.type):  # the kept ones first, and their number known without waiting
        order = kept.byte().argsort(dim=-1, descending=True, stable=True)
        columns = order[:, : piece.count]
        if piece.is_padded:
            is_kept = kept.gather(1, columns)  # (r, n)
    else:
        columns = kept.nonzero()[:, 1].view(piece.rows.numel(), piece.count)
    first = piece.rows.div(num_blocks, rounding_mode="floor") * num_blocks  # of the row's head
    return (columns + first[:, None]).flatten(), is_kept


def _bias(is_kept: Tensor | None, block_size: int, more: int, dtype: torch.dtype) -> Tensor | None:
    """Return what is added to scores (r, 1, 1, n * M + more) where blocks (r, n) are padding."""
    if is_kept is None:
        return None
    admitted = is_kept.repeat_interleave(block_size, -1)
    bias = torch.zeros(admitted.shape, dtype=dtype, device=admitted.device)
    bias = bias.masked_fill_(~admitted, -torch.inf)
    return F.pad(bias, (0, more))[:, None, None]


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
    """Write the rows of a piece to out; q, k, v, out (heads*Q, M, K), more (heads, E, K)."""
    num_blocks = kept_rows.shape[1]
    # allocated once: large allocations cost page faults every time
    keys, values = (x.new_empty(gathered, *x.shape[1:]) for x in (k, v))

    def run(piece: Piece) -> None:
        columns, is_kept = _columns(piece, kept_rows)
        queries = q.index_select(0, piece.rows)[:, None]  # (r, 1, M, K)
        bias = _bias(is_kept, k.shape[1], more_k.shape[1], q.dtype)
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
        rows = F.scaled_dot_product_attention(queries, here_k, here_v, attn_mask=bias)
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
    """Add the gradients of the pieces of one head; all but kept_rows are (heads*Q, M, K)."""
    scale = 1 / math.sqrt(q.shape[-1])

    def run(pieces: list[Piece]) -> None:
        for piece in pieces:
            columns, is_kept = _columns(piece, kept_rows)
            num_rows = piece.rows.numel()
            queries, grad = (x.index_select(0, piece.rows) for x in (q, grad_out))  # (r, M, K)
            keys, values = (
                x.index_select(0, columns).view(num_rows, -1, x.shape[-1]) for x in (k, v)
            )  # (r, n * M, K)
            scores = (queries @ keys.transpose(1, 2)).to(grad_q.dtype).mul_(scale)
            bias = _bias(is_kept, k.shape[1], 0, scores.dtype)
            if bias is not None:
                scores += bias[:, 0]  # (r, 1, n * M)
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
