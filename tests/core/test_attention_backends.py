"""Every backend of `attend` against the specification, forward and backward."""

from __future__ import annotations

import threading

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kandinsky_core.attention import (
    BlockMap,
    attend,
    attend_dense,
    attend_gathered,
    attend_reference,
)
from kandinsky_core.attention.backends import dense, gathered
from kandinsky_core.attention.full_heads import full_heads_apart


def attend_padded(*args, **kwargs):
    """Gathered as it runs forward on accelerators: rows of different counts share a piece."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gathered, "_pads", lambda _: True)
        return attend_gathered(*args, **kwargs)


BACKENDS = {
    "auto": attend,
    "dense": attend_dense,
    "gathered": attend_gathered,
    "padded": attend_padded,
}
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 2e-2}


def random_case(seed, batch, heads, blocks, block, head_dim, density, dtype=torch.float32):
    """q, k, v and a map with one row that keeps nothing and one head that keeps everything."""
    generator = torch.Generator().manual_seed(seed)
    q, k, v = (
        torch.randn(batch, heads, blocks * block, head_dim, generator=generator).to(dtype)
        for _ in range(3)
    )
    kept = torch.rand(batch, heads, blocks, blocks, generator=generator) < density
    kept[0, 0, blocks // 2] = False
    if batch > 1:
        kept[-1, -1] = True
    return q, k, v, BlockMap(kept, (1, 1, block), (1, 1, blocks))


def by_hand(q, k, v, kept, block):
    """Attention of one query over the keys it may see, one query at a time, in fp64."""
    out = torch.zeros_like(q, dtype=torch.float64)
    for index in torch.cartesian_prod(*(torch.arange(n) for n in q.shape[:3])).tolist():
        b, n, s = index
        seen = kept[b, n, s // block].repeat_interleave(block)
        if seen.any():
            scores = k[b, n, seen].double() @ q[b, n, s].double() / q.shape[-1] ** 0.5
            out[b, n, s] = scores.exp() / scores.exp().sum() @ v[b, n, seen].double()
    return out


def test_reference_is_attention_over_the_kept_keys():
    q, k, v, block_map = random_case(0, 2, 2, 5, 3, 8, 0.4)
    expected = by_hand(q, k, v, block_map.kept, 3)
    actual = attend_reference(q, k, v, block_map=block_map)
    assert (actual - expected).abs().max() < 1e-6
    assert not actual[0, 0, 6:9].any()  # the row that keeps nothing


@pytest.mark.parametrize("backend", BACKENDS)
@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    batch=st.integers(1, 2),
    heads=st.integers(1, 3),
    blocks=st.integers(1, 11),
    block=st.sampled_from([1, 4, 16]),
    head_dim=st.sampled_from([64, 128]),
    density=st.floats(0.02, 1.0),
    dtype=st.sampled_from(list(TOLERANCE)),
)
def test_backend_equals_reference(
    backend, seed, batch, heads, blocks, block, head_dim, density, dtype
):
    q, k, v, block_map = random_case(seed, batch, heads, blocks, block, head_dim, density, dtype)
    expected = attend_reference(q.float(), k.float(), v.float(), block_map=block_map)
    actual = BACKENDS[backend](q, k, v, block_map=block_map)
    assert actual.dtype == dtype
    assert (actual.float() - expected).abs().max() < TOLERANCE[dtype]
    middle = slice(blocks // 2 * block, (blocks // 2 + 1) * block)
    if batch == 1 or heads > 1:
        assert not actual[0, 0, middle].any()


@pytest.mark.parametrize("backend", BACKENDS)
def test_released_block_and_strided_inputs(backend):
    # 64 tokens a block, and (B, S, N, K) in memory, as the network has it
    q, k, v, block_map = random_case(1, 1, 2, 9, 64, 64, 0.3)
    q, k, v = (x.transpose(1, 2).contiguous().transpose(1, 2) for x in (q, k, v))
    expected = attend_reference(q, k, v, block_map=block_map)
    actual = BACKENDS[backend](q, k, v, block_map=block_map)
    assert (actual - expected).abs().max() < 1e-5


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("density", [0.05, 0.3, 0.9])
def test_gradients_equal_those_of_the_reference(backend, dtype, density):
    q, k, v, block_map = random_case(2, 2, 2, 7, 8, 64, density, dtype)
    weight = torch.randn(q.shape, generator=torch.Generator().manual_seed(3))

    def gradients(function, *inputs):
        inputs = [x.clone().requires_grad_() for x in inputs]
        (function(*inputs, block_map=block_map).float() * weight).sum().backward()
        return [x.grad for x in inputs]

    expected = gradients(attend_reference, q.float(), k.float(), v.float())
    for actual, wanted in zip(gradients(BACKENDS[backend], q, k, v), expected, strict=True):
        assert actual.dtype == dtype
        error = (actual.float() - wanted).norm() / wanted.norm()
        assert error < TOLERANCE[dtype]


@pytest.mark.parametrize("slack", [0.125, 0.9])
def test_gradients_of_padded_pieces(slack, monkeypatch):
    monkeypatch.setattr(gathered, "_pads", lambda _: True)
    monkeypatch.setattr(gathered, "SLACK_ELSEWHERE", slack)
    q, k, v, block_map = random_case(8, 2, 2, 13, 4, 16, 0.6)
    wanted, actual = (
        torch.autograd.functional.vjp(
            lambda *x, f=function: f(*x, block_map=block_map), (q, k, v), q.sin()
        )
        for function in (attend_reference, attend_gathered)
    )
    assert (actual[0] - wanted[0]).abs().max() < 1e-5
    assert all((a - b).abs().max() < 1e-5 for a, b in zip(actual[1], wanted[1], strict=True))


@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("with_mask", [False, True])
def test_heads_that_keep_everything_never_reach_a_backend(share, with_mask):
    q, k, v, block_map = random_case(9, 2, 4, 5, 4, 16, 0.5)
    full = torch.arange(8).view(2, 4) < 8 * share
    kept = block_map.kept | full[:, :, None, None]
    kept[..., 1, 2] &= full  # no other is full by chance
    kept[~full, 0] = False
    block_map = BlockMap(kept, block_map.tile_thw, block_map.grid_thw)
    mask = torch.arange(20).expand(2, 20) < torch.tensor([[20], [13]]) if with_mask else None
    seen = []

    def sparse(*args, **kwargs):
        seen.append(kwargs["block_map"].kept)
        return attend_reference(*args, **kwargs)

    out = full_heads_apart(sparse)(q, k, v, mask=mask, block_map=block_map)
    expected = attend_reference(q, k, v, mask=mask, block_map=block_map)
    assert (out - expected).abs().max() < 1e-5
    assert [len(x.flatten(0, 1)) for x in seen] == ([] if share == 1 else [8 - 8 * share])
    assert not any(x.flatten(2).all(-1).any() for x in seen)


@pytest.mark.parametrize("backend", [*BACKENDS, "reference"])
def test_mask_of_keys_and_map_together(backend):
    q, k, v, block_map = random_case(4, 2, 2, 6, 4, 16, 0.5)
    mask = torch.rand(2, 24, generator=torch.Generator().manual_seed(5)) < 0.6
    function = BACKENDS.get(backend, attend_reference)
    actual = function(q, k, v, mask=mask, block_map=block_map)
    for b, n, s in ((0, 0, 0), (0, 1, 23), (1, 0, 9), (1, 1, 14)):
        seen = block_map.kept[b, n, s // 4].repeat_interleave(4) & mask[b]
        weights = torch.softmax(k[b, n, seen] @ q[b, n, s] / 4, 0)
        assert (actual[b, n, s] - weights @ v[b, n, seen]).abs().max() < 1e-5


@pytest.mark.parametrize("backend", [*BACKENDS, "reference"])
def test_dropped_blocks_have_no_say(backend):
    function = BACKENDS.get(backend, attend_reference)
    q, k, v, block_map = random_case(6, 1, 1, 4, 8, 16, 0.0)
    kept = torch.arange(4).expand_as(block_map.kept) == 0
    one = BlockMap(kept, (1, 1, 8), (1, 1, 4))
    before = function(q, k, v, block_map=one)
    assert (before - attend_reference(q, k, v)).abs().max() > 0.1  # it is not dense
    k[:, :, 8:], v[:, :, 8:] = 100.0, -100.0
    assert torch.equal(function(q, k, v, block_map=one), before)


@pytest.mark.parametrize("backend", BACKENDS)
def test_small_pieces_and_threads_change_nothing(backend, monkeypatch):
    q, k, v, block_map = random_case(7, 2, 3, 13, 4, 32, 0.4)
    expected = attend_reference(q, k, v, block_map=block_map)
    grads = torch.autograd.functional.vjp(
        lambda *x: attend_reference(*x, block_map=block_map), (q, k, v), torch.ones_like(q)
    )[1]
    monkeypatch.setitem(gathered.PIECE_BYTES, "cpu", 1)
    monkeypatch.setattr(dense, "WORK_BYTES", 1)
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        for mode in (torch.no_grad, torch.inference_mode):
            with mode():
                actual = BACKENDS[backend](q, k, v, block_map=block_map)
            assert (actual - expected).abs().max() < 1e-5
        actual = torch.autograd.functional.vjp(
            lambda *x: BACKENDS[backend](*x, block_map=block_map), (q, k, v), torch.ones_like(q)
        )[1]
        assert all((a - b).abs().max() < 1e-5 for a, b in zip(actual, grads, strict=True))
        # neither this thread nor those to come are left with one torch thread
        seen = [torch.get_num_threads()]
        thread = threading.Thread(target=lambda: seen.append(torch.get_num_threads()))
        thread.start()
        thread.join()
        assert seen == [3, 3]
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("backend", [*BACKENDS, "reference"])
@pytest.mark.parametrize("grad", [False, True])
def test_keys_beyond_the_map_are_seen_by_every_query(backend, grad):
    q, k, v, block_map = random_case(3, 2, 2, 5, 4, 16, 0.3)
    generator = torch.Generator().manual_seed(9)
    more_k, more_v = (torch.randn(2, 2, 3, 16, generator=generator) for _ in range(2))
    k, v = torch.cat([k, more_k], dim=2), torch.cat([v, more_v], dim=2)
    expected = torch.zeros_like(q, dtype=torch.float64)
    for b, n, s in torch.cartesian_prod(*(torch.arange(x) for x in q.shape[:3])).tolist():
        seen = block_map.kept[b, n, s // 4].repeat_interleave(4)
        seen = torch.cat([seen, torch.ones(3, dtype=torch.bool)])
        weights = (k[b, n, seen].double() @ q[b, n, s].double() / 4).softmax(0)
        expected[b, n, s] = weights @ v[b, n, seen].double()
    q.requires_grad_(grad)
    attend_with = {**BACKENDS, "reference": attend_reference}[backend]
    actual = attend_with(q, k, v, block_map=block_map)
    assert (actual - expected).abs().max() < 1e-5
