"""How much memory maps and sparse attention take beside their inputs and results."""

from __future__ import annotations

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from kandinsky_core.attention import (
    BlockMap,
    attend_dense,
    attend_gathered,
    gathered_bytes,
    top_p_blocks,
)
from kandinsky_core.attention.backends import dense, gathered


@pytest.fixture(autouse=True)
def one_thread():
    """Keep the work on one thread: a dispatch mode sees the operations of its own alone."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


class LargestTensor(TorchDispatchMode):
    """Remembers the largest tensor that any operation returned, in bytes."""

    size = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for tensor in out if isinstance(out, tuple | list) else (out,):
            if isinstance(tensor, torch.Tensor):
                self.size = max(self.size, tensor.untyped_storage().nbytes())
        return out


def case(heads, blocks, block, head_dim, density):
    generator = torch.Generator().manual_seed(0)
    qkv = [torch.randn(1, heads, blocks * block, head_dim, generator=generator) for _ in range(3)]
    kept = torch.rand(1, heads, blocks, blocks, generator=generator) < density
    return qkv, BlockMap(kept, (1, 1, block), (1, 1, blocks))


@pytest.mark.parametrize("backward", [False, True])
def test_gathered_memory_is_bounded(backward, monkeypatch):
    inputs, block_map = case(2, 64, 16, 16, 0.3)
    monkeypatch.setitem(gathered.PIECE_BYTES, "cpu", 1 << 16)
    for x in inputs:
        x.requires_grad_(backward)
    with LargestTensor() as largest:
        out = attend_gathered(*inputs, block_map=block_map)
        if backward:
            out.sum().backward()
    one_input = inputs[0].numel() * 4
    assert largest.size <= max(1 << 16, one_input)
    # all gathered keys together, or all scores, would be many times that
    assert block_map.kept.sum() * 16 * 16 * 4 > 8 * one_input


class Counted(TorchDispatchMode):
    """Counts operations; those that would make the host wait for a device are refused."""

    count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        assert func.overloadpacket not in (torch.ops.aten.nonzero, torch.ops.aten.masked_select)
        self.count += 1
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("backward", [False, True])
def test_accelerators_get_few_operations_and_no_wait_for_each_piece(backward, monkeypatch):
    inputs, block_map = case(2, 64, 4, 8, 0.0)
    # each row of a head keeps another number of blocks, from 1 to all but one
    block_map.kept.copy_(torch.ones(64, 64, dtype=torch.bool).tril())
    block_map.kept[:, :, -1, 0] = False
    monkeypatch.setattr(gathered, "_pads", lambda _: True)
    for x in inputs:
        x.requires_grad_(backward)
    with Counted() as operations:
        out = attend_gathered(*inputs, block_map=block_map)
        if backward:
            out.sum().backward()
    # counts up to 64, an eighth from each other: no more than log(64) / log(8/7) = 31 pieces of
    # both heads forward and of each backward; views count as operations here
    assert operations.count < 31 * (40 + 2 * 80 * backward)
    counts = block_map.kept.flatten(0, 1).sum(-1)
    assert all(len(of_head) <= 31 for of_head in gathered._pieces(counts, 8))
    monkeypatch.setattr(gathered, "_pads", lambda _: False)
    assert all(len(of_head) == 63 for of_head in gathered._pieces(counts, 8))


@pytest.mark.parametrize("backward", [False, True])
def test_dense_memory_under_a_map_is_bounded(backward, monkeypatch):
    inputs, block_map = case(2, 64, 16, 16, 0.3)
    monkeypatch.setattr(dense, "WORK_BYTES", 1 << 18)
    for x in inputs:
        x.requires_grad_(backward)
    with LargestTensor() as largest:
        out = attend_dense(*inputs, block_map=block_map)
        if backward:
            out.sum().backward()
    assert largest.size <= 1 << 18
    assert 2 * (64 * 16) ** 2 * 4 == 1 << 23  # a mask of all scores


def test_map_takes_what_it_may():
    (q, k, _), _ = case(4, 128, 2, 8, 0.3)
    largest_of = {}
    for limit in (1 << 17, 1 << 30):
        with LargestTensor() as largest:
            top_p_blocks(q, k, 2, 0.5, work_bytes=limit)
        largest_of[limit] = largest.size
    assert largest_of[1 << 17] <= 1 << 17
    assert largest_of[1 << 30] == 4 * 128**2 * 8  # indices of every row: what a sort takes at once


@pytest.mark.parametrize(
    ("dims", "density", "device", "expected"),
    [
        # two heads of four rows that keep two blocks: 8 x 2 x 512 bytes of keys and values, and
        # half as much of queries and results
        ((2, 4, 16, 8, 2), 0.5, "cpu", 8 * 2 * 512 * 3 // 2),
        # a piece of 64 MiB of rows that keep ten, and a tenth
        ((32, 100, 64, 128, 2), 0.1, "cuda", int((64 << 20) * 1.1)),
        # a row of 1000 blocks of 32 KiB is more than a piece and is never divided
        ((1, 1000, 64, 128, 2), 1.0, "cpu", 1001 * (32 << 10)),
    ],
    ids=["all at once", "a piece", "a row"],
)
def test_what_is_gathered_at_a_time(dims, density, device, expected):
    found = gathered_bytes(*dims, density=density, device_type=device)
    assert found == pytest.approx(expected, abs=1)
