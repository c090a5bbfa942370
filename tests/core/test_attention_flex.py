"""FlexAttention: what it computes, how it is compiled, and what it hands on."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.attention import flex_attention

from kandinsky_core.attention import BlockMap, attend, attend_reference, load_backend

TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 2e-2}


def random_case(
    density, block=64, blocks=5, heads=2, head_dim=64, dtype=torch.float32, *, seed=0, batch=1
):
    generator = torch.Generator().manual_seed(seed)
    q, k, v = (
        torch.randn(batch, heads, blocks * block, head_dim, generator=generator).to(dtype)
        for _ in range(3)
    )
    kept = torch.rand(batch, heads, blocks, blocks, generator=generator) < density
    return q, k, v, BlockMap(kept, (1, 1, block), (1, 1, blocks))


@pytest.mark.slow
@pytest.mark.usefixtures("compiled_flex")
def test_new_maps_and_heads_do_not_recompile():
    torch._dynamo.reset()
    flex = load_backend("flex")
    torch._dynamo.utils.counters.clear()
    with torch.no_grad():
        for density, heads, batch in ((0.3, 2, 1), (0.7, 3, 2)):
            q, k, v, block_map = random_case(density, heads=heads, batch=batch)
            block_map.kept[0, 1, 3] = False
            block_map.kept[-1, -1] = True
            expected = attend_reference(q, k, v, block_map=block_map)
            actual = flex(q, k, v, block_map=block_map)
            assert (actual - expected).abs().max() < 1e-5
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1


@pytest.mark.slow
@pytest.mark.usefixtures("compiled_flex")
@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("head_dim", [64, 128])
@pytest.mark.parametrize("block", [16, 64])
def test_compiled_flex_equals_reference(block, head_dim, dtype):
    torch._dynamo.reset()
    flex = load_backend("flex")

    @settings(max_examples=15, deadline=None)
    @given(
        seed=st.integers(0, 10**6),
        batch=st.integers(1, 2),
        heads=st.integers(1, 3),
        blocks=st.sampled_from([2, 5, 7, 11]),  # the second compiles once more, for any
        density=st.floats(0.02, 1.0),
    )
    def check(seed, batch, heads, blocks, density):
        q, k, v, block_map = random_case(
            density, block, blocks, heads, head_dim, dtype, seed=seed, batch=batch
        )
        block_map.kept[0, 0, blocks // 2] = False
        expected = attend_reference(q.float(), k.float(), v.float(), block_map=block_map)
        with torch.no_grad():
            actual = flex(q, k, v, block_map=block_map)
        assert actual.dtype == dtype
        assert (actual.float() - expected).abs().max() < TOLERANCE[dtype]
        assert not actual[0, 0, blocks // 2 * block : (blocks // 2 + 1) * block].any()

    check()


def test_flex_hands_on_what_it_cannot_do(monkeypatch):
    def refuse(*_args, **_kwargs):
        raise AssertionError("compiled for a call that flex cannot do")

    monkeypatch.setattr(torch, "compile", lambda _, **_options: refuse)
    flex = load_backend("flex")
    q, k, v, block_map = random_case(0.5, block=12)
    assert torch.equal(flex(q, k, v), attend(q, k, v))
    expected = attend_reference(q, k, v, block_map=block_map)
    assert (flex(q, k, v, block_map=block_map) - expected).abs().max() < 1e-5
    mask = torch.arange(60)[None] < 50
    expected = attend_reference(q, k, v, mask=mask, block_map=block_map)
    actual = flex(q, k, v, mask=mask, block_map=block_map)
    assert (actual - expected).abs().max() < 1e-5
    q, k, v, block_map = random_case(0.5)  # no backward on a CPU
    flex(q.requires_grad_(), k, v, block_map=block_map).sum().backward()
    assert q.grad is not None


def test_what_does_not_compile_is_one_sentence(monkeypatch):
    def broken(*_args, **_kwargs):
        raise AssertionError("no kernel for this\nand a page of code")

    monkeypatch.setattr(torch, "compile", lambda _, **_options: broken)
    q, k, v, block_map = random_case(0.5)
    with pytest.raises(RuntimeError, match=r"\(no kernel for this\); choose .* gathered") as error:
        load_backend("flex")(q, k, v, block_map=block_map)
    assert "\n" not in str(error.value)


# --- on CUDA: the call alone -----------------------------------------------------------------


class OnCuda(torch.Tensor):
    """A tensor in memory that says it is on CUDA."""

    @property
    def device(self):
        return torch.device("cuda")


@pytest.fixture
def calls(monkeypatch):
    """Return what the compiled function would be called with."""
    calls = []

    def compiled(_q, _k, v, *, block_mask, kernel_options):
        calls.append((block_mask, kernel_options))
        return v

    monkeypatch.setattr(torch, "compile", lambda _, **_options: compiled)
    return calls


@pytest.mark.parametrize("block", [16, 32, 64, 128])
def test_cuda_tiles_divide_the_blocks_and_each_other(calls, block):
    q, k, v, block_map = random_case(0.5, block)
    load_backend("flex")(q.as_subclass(OnCuda), k, v, block_map=block_map)
    tiles = calls[0][1]
    assert all(block % tokens == 0 and tokens >= 16 for tokens in tiles.values())
    # what the kernels of the backward pass assert
    assert tiles["BLOCK_N1"] % tiles["BLOCK_M1"] == tiles["BLOCK_M2"] % tiles["BLOCK_N2"] == 0
    assert {"BLOCK_M", "BLOCK_N"} < tiles.keys()


@pytest.mark.parametrize("grad", [False, True])
def test_lists_for_a_backward_pass_are_made_where_there_is_one(calls, grad):
    q, k, v, block_map = random_case(0.5)
    q = q.as_subclass(OnCuda).requires_grad_(grad)
    load_backend("flex")(q, k, v, block_map=block_map)
    assert len(calls) == 2  # a head each
    for head, (block_mask, _) in enumerate(calls):
        assert (block_mask.q_indices is not None) == grad
        kept = block_map.kept[0, head]
        assert torch.equal(block_mask.kv_num_blocks[0, 0], kept.sum(-1))
        assert torch.equal(block_mask.to_dense()[0, 0].bool(), kept)


def test_older_torch_makes_those_lists_always(calls, monkeypatch):
    make = flex_attention.BlockMask.from_kv_blocks

    def older(counts, columns, *, BLOCK_SIZE, mask_mod):  # noqa: N803 (torch's name)
        return make(counts, columns, BLOCK_SIZE=BLOCK_SIZE, mask_mod=mask_mod)

    monkeypatch.setattr(flex_attention.BlockMask, "from_kv_blocks", older)
    q, k, v, block_map = random_case(0.5)
    load_backend("flex")(q, k, v, block_map=block_map)
    assert calls[0][0].q_indices is not None
