"""Unpacks GGUF's blocks with torch, on any device, so that weights can stay packed in memory.

The package gguf unpacks with numpy, which serves for loading but not for every call of a layer.
Formats by the layouts of ggml (ggml-common.h); results are bit-equal to the package's, in fp32.

Letters: R rows of a matrix, C columns, n blocks.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor

# this package may be there twice, by itself and in a node pack, and an operation has one owner
_NAMESPACE = re.sub(r"\W", "_", __name__)
_AT_ONCE = 1 << 21
"""Numbers unpacked or packed at a time: their copies in fp32 stay small beside the result."""


class Packing(NamedTuple):
    """How the blocks of one of GGUF's types are laid out."""

    block: int
    """Numbers in a block, all of one row."""
    block_bytes: int
    unpack: Callable[[Tensor], Tensor]
    """Blocks (n, block_bytes) uint8 -> numbers (n, block) fp32."""

    def packed_columns(self, columns: int) -> int:
        """Return the bytes of a row of so many numbers."""
        return columns // self.block * self.block_bytes


@torch.library.custom_op(f"{_NAMESPACE}::unpack", mutates_args=())
def unpack(packed: Tensor, packing: str, dtype: torch.dtype) -> Tensor:
    """Turn a packed matrix into numbers; one operation to torch.compile, which would unroll it.

    Args:
        packed: Blocks of all rows (R, bytes of a row), uint8.
        packing: Key of `PACKINGS`.
        dtype: Of the result.

    Returns:
        (R, C), on the same device.
    """
    layout = PACKINGS[packing]
    result = _empty(packed, packing, dtype)
    for first, last in _parts(*result.shape):
        part = packed[first:last].reshape(-1, layout.block_bytes)
        result[first:last] = layout.unpack(part).view(-1, result.shape[1])
    return result


@unpack.register_fake
def _empty(packed: Tensor, packing: str, dtype: torch.dtype) -> Tensor:
    layout = PACKINGS[packing]
    rows, row_bytes = packed.shape
    return packed.new_empty((rows, row_bytes // layout.block_bytes * layout.block), dtype=dtype)


def pack_q8_0(weight: Tensor) -> Tensor:
    """Pack numbers into blocks of Q8_0: 8 bits each, and a scale for every 32.

    Args:
        weight: (R, C), C a multiple of 32.

    Returns:
        (R, bytes of a row) uint8.
    """
    parts = []
    for first, last in _parts(*weight.shape):
        blocks = weight[first:last].reshape(-1, 32).float()
        scale = blocks.abs().amax(-1, keepdim=True) / 127
        codes = torch.where(scale > 0, blocks / scale, 0).round_().to(torch.int8)
        packed = torch.cat([scale.half().view(torch.uint8), codes.view(torch.uint8)], dim=-1)
        parts.append(packed.view(last - first, -1))
    return torch.cat(parts)


def _parts(rows: int, columns: int) -> Iterator[tuple[int, int]]:
    """Return first and last row of parts of a matrix."""
    step = max(1, _AT_ONCE // columns)
    return ((first, min(first + step, rows)) for first in range(0, rows, step))


def _half(blocks: Tensor, at: int) -> Tensor:
    """Return two bytes of each block as a number (n, 1) fp32."""
    return blocks[:, at : at + 2].contiguous().view(torch.float16).float()


def _bits(codes: Tensor, width: int) -> Tensor:
    """Return bytes (..., m) in parts of so many bits, the lowest first -> (..., 8 / width, m)."""
    # made on the device, without waiting for it
    shifts = torch.arange(0, 8, width, dtype=torch.uint8, device=codes.device)
    return codes[..., None, :] >> shifts[:, None] & (1 << width) - 1


def _nibbles(codes: Tensor) -> Tensor:
    """Return bytes (n, 16) -> codes (n, 32): all low halves, then all high ones."""
    return _bits(codes, 4).flatten(1)


def _fifth_bits(flags: Tensor) -> Tensor:
    """Return bytes (n, 4), a bit for each number in their order -> (n, 32), 0 or 16."""
    return _bits(flags, 1).transpose(1, 2).flatten(1) << 4


def _q4_0(blocks: Tensor) -> Tensor:
    return (_nibbles(blocks[:, 2:]).float() - 8).mul_(_half(blocks, 0))


def _q4_1(blocks: Tensor) -> Tensor:
    return _nibbles(blocks[:, 4:]).float().mul_(_half(blocks, 0)).add_(_half(blocks, 2))


def _q5_0(blocks: Tensor) -> Tensor:
    codes = _nibbles(blocks[:, 6:]) | _fifth_bits(blocks[:, 2:6])
    return (codes.float() - 16).mul_(_half(blocks, 0))


def _q5_1(blocks: Tensor) -> Tensor:
    codes = _nibbles(blocks[:, 8:]) | _fifth_bits(blocks[:, 4:8])
    return codes.float().mul_(_half(blocks, 0)).add_(_half(blocks, 2))


def _q8_0(blocks: Tensor) -> Tensor:
    return blocks[:, 2:].view(torch.int8).float().mul_(_half(blocks, 0))


def _crumbs(codes: Tensor) -> Tensor:
    """Return two bits each of bytes (n, 64) -> (n, 16, 16): groups of 16 numbers in their order."""
    halves = codes.reshape(-1, 2, 32)  # of 128 numbers each
    return _bits(halves, 2).reshape(-1, 16, 16)


def _q2_k(blocks: Tensor) -> Tensor:
    scales = blocks[:, :16]
    factor = _half(blocks, 80) * (scales & 15).float()  # (n, 16)
    minimum = _half(blocks, 82) * (scales >> 4).float()
    codes = _crumbs(blocks[:, 16:80]).float()
    return codes.mul_(factor[..., None]).sub_(minimum[..., None]).flatten(1)


def _q3_k(blocks: Tensor) -> Tensor:
    low = _bits(blocks[:, 96:104], 4).flatten(1)  # of 16 scales
    high = _bits(blocks[:, 104:108], 2).flatten(1)
    factor = _half(blocks, 108) * ((low | high << 4).float() - 32)
    # a bit that is not set takes 4 away
    flags = _bits(blocks[:, :32], 1).reshape(-1, 16, 16)
    codes = _crumbs(blocks[:, 32:96]).float() - 4 * (1 - flags.float())
    return codes.mul_(factor[..., None]).flatten(1)


def _scales_and_minima(packed: Tensor) -> tuple[Tensor, Tensor]:
    """Return the twelve bytes (n, 12) -> 8 scales and 8 minima of 6 bits (n, 8) fp32."""
    first, second, rest = packed.split(4, dim=-1)
    scales = torch.cat([first & 63, (rest & 15) | (first >> 6 << 4)], dim=-1)
    minima = torch.cat([second & 63, (rest >> 4) | (second >> 6 << 4)], dim=-1)
    return scales.float(), minima.float()


def _scaled(blocks: Tensor, codes: Tensor) -> Tensor:
    """Return codes (n, 8, 32) of blocks that begin with a factor for scales, one for minima, and
    those."""
    scales, minima = _scales_and_minima(blocks[:, 4:16])
    factor, minimum = _half(blocks, 0) * scales, _half(blocks, 2) * minima
    return codes.float().mul_(factor[..., None]).sub_(minimum[..., None]).flatten(1)


def _pairs(codes: Tensor) -> Tensor:
    """Return bytes (n, 128): of every 32 the low halves, then the high ones -> (n, 8, 32)."""
    return _bits(codes.reshape(-1, 4, 32), 4).reshape(-1, 8, 32)


def _q4_k(blocks: Tensor) -> Tensor:
    return _scaled(blocks, _pairs(blocks[:, 16:]))


def _q5_k(blocks: Tensor) -> Tensor:
    fifth = _bits(blocks[:, 16:48], 1)  # (n, 8, 32)
    return _scaled(blocks, _pairs(blocks[:, 48:]) | fifth << 4)


def _q6_k(blocks: Tensor) -> Tensor:
    # halves of 128 numbers: 64 bytes of low nibbles, 32 bytes of the two bits above them
    low = _bits(blocks[:, :128].reshape(-1, 2, 64), 4).reshape(-1, 16, 16)
    high = _bits(blocks[:, 128:192].reshape(-1, 2, 32), 2).reshape(-1, 16, 16)
    scales = blocks[:, 192:208].contiguous().view(torch.int8).float()
    factor = _half(blocks, 208) * scales
    return ((low | high << 4).float() - 32).mul_(factor[..., None]).flatten(1)


PACKINGS = {
    "Q4_0": Packing(32, 18, _q4_0),
    "Q4_1": Packing(32, 20, _q4_1),
    "Q5_0": Packing(32, 22, _q5_0),
    "Q5_1": Packing(32, 24, _q5_1),
    "Q8_0": Packing(32, 34, _q8_0),
    "Q2_K": Packing(256, 84, _q2_k),
    "Q3_K": Packing(256, 110, _q3_k),
    "Q4_K": Packing(256, 144, _q4_k),
    "Q5_K": Packing(256, 176, _q5_k),
    "Q6_K": Packing(256, 210, _q6_k),
}
"""GGUF's types by name. Others are unpacked while a file is read."""
