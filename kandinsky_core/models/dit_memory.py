"""How much memory one call of CrossDiT takes beside its weights, from its dimensions alone.

Walks through a visual block as `layers.py` runs it and counts the tensors alive at each moment
that may be the worst, in a pass without gradients. The input is not counted. The attention
kernels' own scratch space is left out; they hold a few rows of scores. Of NABLA the gathered
backend is counted. tests/core/test_plan.py holds it against the peak of real runs.

Letters: S visual tokens, L text tokens, D width, N heads, K head dim, Q blocks.
"""

from __future__ import annotations

import math

import torch

from ..attention import Nabla, gathered_bytes, map_bytes
from ..family.config import DiTConfig

FP32 = 4
"""Bytes of a float32 number."""
COMPLEX = 8
"""Bytes of a complex64 number."""


def call_bytes(
    config: DiTConfig,
    tokens: int,
    *,
    batch: int = 1,
    text_tokens: int = 256,
    dtype: torch.dtype = torch.bfloat16,
    stored: torch.dtype | None = None,
    nabla: Nabla | None = None,
    density: float = 1.0,
    device_type: str = "cuda",
) -> int:
    """Count the tensors alive at the peak of one call.

    Args:
        config: Of the network.
        tokens: Visual tokens S.
        batch: Rows at once: 2 where both prompts of guidance run together.
        text_tokens: Text tokens L.
        dtype: The large matrices compute in.
        stored: Dtype of the weights where it is another: each is cast while it is used.
        nabla: Sparse attention; None is dense.
        density: Share of blocks that it keeps, in [0, 1]; it hardly matters.
        device_type: Where it runs, as torch names it.

    Returns:
        Bytes.
    """
    item, model_dim = dtype.itemsize, config.model_dim
    narrow = batch * tokens * model_dim * item  # the stream, and whatever is as large
    wide = batch * tokens * model_dim * FP32  # a copy of it in fp32
    cast = int(item < FP32)  # without a cast, fp32 copies and their results are one tensor
    hidden = batch * tokens * config.ff_dim * item
    modulation = 9 * model_dim * config.time_dim * FP32 * int((stored or dtype) != torch.float32)
    weight = model_dim * config.ff_dim * item if stored not in (None, dtype) else 0
    moments = [
        narrow + modulation,
        # input of the block, stream, last update; normalised, modulated
        3 * narrow + 2 * wide + cast * narrow,
        # input of the block, stream, input, rotated queries, keys; keys in fp32, rotated, cast
        5 * narrow + wide + cast * (wide + narrow),
        _attention(config, tokens, batch, item, nabla, density, device_type),
        # input of the block, stream, input; hidden layer, and what it becomes
        4 * narrow + hidden + weight,
        # input of the block, stream, input, update; the last and the stream in fp32
        4 * narrow + wide + cast * wide,
    ]
    rope = tokens * config.head_dim // 2 * COMPLEX
    text = batch * text_tokens * model_dim * item
    vectors = batch * 9 * model_dim * FP32
    return max(moments) + rope + text + vectors + _window(tokens, nabla)


def cache_bytes(
    config: DiTConfig, tokens: int, *, rows: int, residuals: int, dtype: torch.dtype
) -> int:
    """Count what a cache of the blocks' results (`caching/`) keeps beside a call.

    Args:
        config: Of the network.
        tokens: Visual tokens S.
        rows: Of the call; the input of its first block stays until the last.
        residuals: Rows whose last result stays: those of all prompts of a step.
        dtype: The large matrices compute in.

    Returns:
        Bytes.
    """
    return (rows + residuals) * tokens * config.model_dim * dtype.itemsize


def _attention(
    config: DiTConfig,
    tokens: int,
    batch: int,
    item: int,
    nabla: Nabla | None,
    density: float,
    device_type: str,
) -> int:
    """Count the tensors of self-attention among visual tokens, in bytes."""
    heads, head_dim = batch * config.num_heads, config.head_dim
    narrow = heads * tokens * head_dim * item
    if nabla is None:
        # stream, input, queries, keys, values, result, projected; the kernel's sums of rows
        return 7 * narrow + heads * tokens * FP32
    blocks = tokens // math.prod(nabla.tile_thw)
    kept = heads * blocks**2  # booleans
    # queries and keys once more, in the order that the map and the backend need
    making = 7 * narrow + kept + map_bytes(heads, blocks, head_dim, item)
    # values likewise, and the result
    piece = gathered_bytes(
        heads,
        blocks,
        tokens // blocks,
        head_dim,
        item,
        density=density,
        device_type=device_type,
    )
    return max(making, 9 * narrow + kept + piece)


def _window(tokens: int, nabla: Nabla | None) -> int:
    if nabla is None or nabla.sta_window_thw is None:
        return 0
    return (tokens // math.prod(nabla.tile_thw)) ** 2
