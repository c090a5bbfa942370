"""Choosing a backend: what auto picks, what flex computes, how packages' kernels are called."""

from __future__ import annotations

import sys
from types import ModuleType

import pytest
import torch

from kandinsky_core.attention import (
    BACKENDS,
    BlockMap,
    attend,
    attend_reference,
    auto,
    load_backend,
    missing,
)
from kandinsky_core.attention.backends import packages


def random_case(density, block=64, blocks=5, heads=2, head_dim=64, dtype=torch.float32):
    generator = torch.Generator().manual_seed(0)
    q, k, v = (
        torch.randn(1, heads, blocks * block, head_dim, generator=generator).to(dtype)
        for _ in range(3)
    )
    kept = torch.rand(1, heads, blocks, blocks, generator=generator) < density
    return q, k, v, BlockMap(kept, (1, 1, block), (1, 1, blocks))


# --- auto ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("density", "dtype", "grad", "expected"),
    [
        (0.2, torch.float32, False, "gathered"),
        (0.6, torch.float32, False, "gathered"),
        (0.95, torch.float32, False, "dense"),
        (0.3, torch.bfloat16, False, "gathered"),
        (0.95, torch.bfloat16, False, "dense"),
        (0.95, torch.float32, True, "gathered"),
    ],
)
def test_auto_picks_by_density_dtype_and_gradient(density, dtype, grad, expected, monkeypatch):
    used = []
    for name in ("dense", "gathered"):
        function = getattr(auto, f"attend_{name}")

        def watched(*args, _name=name, _function=function, **kwargs):
            used.append((_name, kwargs["block_map"]))
            return _function(*args, **kwargs)

        monkeypatch.setattr(auto, f"attend_{name}", watched)
    q, k, v, block_map = random_case(density, 4, 20, dtype=dtype)
    out = attend(q.requires_grad_(grad), k, v, block_map=block_map)
    assert used == [(expected, block_map)]  # the map is never left out
    wanted = attend_reference(q.float(), k.float(), v.float(), block_map=block_map)
    assert (out.float() - wanted).abs().max() < (1e-5 if dtype == torch.float32 else 2e-2)


def test_unknown_and_absent_backends_are_refused_with_what_there_is(monkeypatch):
    monkeypatch.setitem(sys.modules, "sageattention", None)
    with pytest.raises(ValueError, match="'quick' does not exist; choose one of auto, dense"):
        load_backend("quick")
    with pytest.raises(ValueError, match=r"sageattention cannot be imported.*choose one of auto"):
        load_backend("sage")
    assert [missing(name) for name in BACKENDS[:4]] == [None] * 4


# --- flex ----------------------------------------------------------------------------------


@pytest.mark.slow
def test_compiled_flex_equals_reference_and_new_maps_do_not_recompile():
    flex = load_backend("flex")
    torch._dynamo.utils.counters.clear()
    with torch.no_grad():
        for density in (0.3, 0.7):
            q, k, v, block_map = random_case(density)
            block_map.kept[0, 1, 3] = False
            expected = attend_reference(q, k, v, block_map=block_map)
            actual = flex(q, k, v, block_map=block_map)
            assert (actual - expected).abs().max() < 1e-5
            assert not actual[0, 1, 3 * 64 : 4 * 64].any()
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1


def test_flex_hands_on_what_it_cannot_do(monkeypatch):
    def refuse(*_args, **_kwargs):
        raise AssertionError("compiled for a call that flex cannot do")

    monkeypatch.setattr(torch, "compile", lambda _: refuse)
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


# --- kernels of other packages: the calls alone, through stand-ins ---------------------------


@pytest.fixture
def stand_in(monkeypatch):
    """Installs a function under a package's name; returns the calls that it gets."""
    monkeypatch.setattr(packages, "fits_kernels", lambda q: q.dtype == torch.bfloat16)

    def install(name, function):
        module_name, function_name = packages.PACKAGES[name][:2]
        calls = []

        def recorded(*args, **kwargs):
            calls.append((args, kwargs))
            return function(*args, **kwargs)

        parts = module_name.split(".")
        for end in range(1, len(parts) + 1):
            module = ModuleType(".".join(parts[:end]))
            module.__path__ = []
            setattr(module, function_name, recorded)
            monkeypatch.setitem(sys.modules, module.__name__, module)
        return calls

    return install


def close(actual, q, k, v, block_map=None):
    expected = attend_reference(q.float(), k.float(), v.float(), block_map=block_map)
    return (actual.float() - expected).abs().max() < 2e-2


def test_flash_is_called_with_heads_after_tokens(stand_in):
    def flash_attn_func(q, k, v, causal):
        assert not causal
        return attend_reference(*(x.transpose(1, 2) for x in (q, k, v))).transpose(1, 2)

    calls = stand_in("flash", flash_attn_func)
    flash = load_backend("flash")
    q, k, v, block_map = random_case(0.5, dtype=torch.bfloat16)
    assert close(flash(q, k, v), q, k, v)
    assert [x.shape for x in calls[0][0]] == [(1, 320, 2, 64)] * 3
    # everything else runs elsewhere, with its mask and map
    assert close(flash(q, k, v, block_map=block_map), q, k, v, block_map)
    mask = torch.arange(320)[None] < 100
    expected = attend_reference(q, k, v, mask=mask)
    assert (flash(q, k, v, mask=mask) - expected).abs().max() < 2e-2
    flash(q.float(), k.float(), v.float())
    assert len(calls) == 1


def test_sage_is_called_with_tokens_after_heads(stand_in):
    def sageattn(q, k, v, tensor_layout, is_causal):
        assert (tensor_layout, is_causal) == ("HND", False)
        return attend_reference(q, k, v)

    calls = stand_in("sage", sageattn)
    sage = load_backend("sage")
    q, k, v, block_map = random_case(0.5, dtype=torch.bfloat16)
    assert close(sage(q, k, v), q, k, v)
    assert close(sage(q, k, v, block_map=block_map), q, k, v, block_map)
    sage(q.requires_grad_(), k, v).sum().backward()
    assert len(calls) == 1


def test_block_sparse_is_called_with_the_boolean_map(stand_in):
    def block_sparse_attn(q, k, v, kept, sizes):
        assert all(x.is_contiguous() for x in (q, k, v, kept))
        assert kept.dtype == torch.bool
        assert sizes.dtype == torch.int32
        assert sizes.tolist() == [64] * kept.shape[-1]
        block_map = BlockMap(kept, (1, 8, 8), (1, 1, kept.shape[-1]))
        out = attend_reference(q, k, v, block_map=block_map)
        empty = ~kept.any(-1).repeat_interleave(64, -1)
        return out.masked_fill(empty[..., None], torch.nan), None  # a kernel may say anything

    calls = stand_in("block_sparse", block_sparse_attn)
    sparse = load_backend("block_sparse")
    q, k, v, block_map = random_case(0.5, dtype=torch.bfloat16)
    block_map.kept[0, 0, 2] = False
    q, k, v = (x.transpose(1, 2).contiguous().transpose(1, 2) for x in (q, k, v))
    assert close(sparse(q, k, v, block_map=block_map), q, k, v, block_map)
    assert len(calls) == 1
    assert close(sparse(q, k, v), q, k, v)
    small = random_case(0.5, block=4, dtype=torch.bfloat16)
    assert close(sparse(*small[:3], block_map=small[3]), *small)
    assert len(calls) == 1
