"""Choosing a backend: what auto picks, and how packages' kernels are called."""

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
from kandinsky_core.attention.backends.tried import Tried


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


class OnCuda(torch.Tensor):
    """A tensor in memory that says it is on CUDA: who is chosen can be tried without one."""

    @property
    def device(self):
        return torch.device("cuda")


@pytest.fixture
def stand_ins(monkeypatch):
    """Put stand-ins for all that auto chooses from; return the names of those called."""
    calls = []
    monkeypatch.setattr(auto, "KERNEL_FROM", 320)

    def stand_in(name, error=None):
        def run(q, k, v, *, mask=None, block_map=None):
            calls.append(name)
            if error is not None:
                raise error
            plain = [x.as_subclass(torch.Tensor) for x in (q, k, v)]
            return attend_reference(*plain, mask=mask, block_map=block_map)

        return run

    def absent():
        raise ImportError("not installed")

    def install(there=("flex", "block_sparse"), **errors):
        for name in ("gathered", "dense"):
            monkeypatch.setattr(auto, f"attend_{name}", stand_in(name))
        for name in ("flex", "block_sparse", "compiled"):
            run = stand_in(name, errors.get(name))
            load = (lambda run=run: run) if name in there else absent
            monkeypatch.setattr(auto, name.upper(), Tried(name, load))
        return calls

    return install


def cuda_case(density, **options):
    q, k, v, block_map = random_case(density, **options)
    return [x.as_subclass(OnCuda) for x in (q, k, v)], block_map


@pytest.mark.parametrize(
    ("density", "options", "there", "expected"),
    [
        (0.2, {"dtype": torch.bfloat16}, ("flex", "block_sparse"), "block_sparse"),
        (0.9, {"dtype": torch.bfloat16}, ("flex", "block_sparse"), "block_sparse"),
        (0.2, {"dtype": torch.float16}, ("flex", "block_sparse"), "flex"),
        (0.2, {}, ("flex", "block_sparse"), "flex"),
        (0.9, {"dtype": torch.bfloat16}, ("flex",), "flex"),
        (0.2, {"block": 16, "blocks": 20}, ("flex", "block_sparse"), "flex"),
        (0.2, {"block": 48, "blocks": 7}, ("flex", "block_sparse"), "gathered"),
        (0.9, {"block": 48, "blocks": 7}, ("flex", "block_sparse"), "dense"),
        (0.2, {"blocks": 4}, ("flex", "block_sparse"), "gathered"),
        (0.9, {"blocks": 4}, ("flex", "block_sparse"), "dense"),
        (0.2, {}, (), "gathered"),
        (0.9, {}, (), "dense"),
        (1.1, {}, ("flex", "block_sparse"), "dense"),
    ],
)
def test_auto_on_cuda_picks_by_dtype_size_and_density(density, options, there, expected, stand_ins):
    calls = stand_ins(there)
    qkv, block_map = cuda_case(density, **options)
    out = attend(*qkv, block_map=block_map)
    assert calls == [expected]
    assert close(out, *(x.as_subclass(torch.Tensor) for x in qkv), block_map)


def test_gradients_and_full_heads_do_not_decide_for_a_kernel(stand_ins):
    calls = stand_ins()
    (q, k, v), block_map = cuda_case(0.2, blocks=4)
    block_map.kept[0, 1] = True  # dense anyway: the other head is sparse
    attend(q, k, v, block_map=block_map)
    (q, k, v), block_map = cuda_case(0.2)
    attend(q.requires_grad_(), k, v, block_map=block_map)
    assert calls == ["gathered", "gathered"]


def test_a_kernel_that_fails_is_left_out_from_then_on_and_said_once(stand_ins, caplog):
    error = RuntimeError("no valid configuration\nand a page of code")
    calls = stand_ins(flex=error, block_sparse=ValueError("Hopper only"))
    qkv, block_map = cuda_case(0.2, dtype=torch.bfloat16)
    for _ in range(3):
        out = attend(*qkv, block_map=block_map)
        assert close(out, *(x.as_subclass(torch.Tensor) for x in qkv), block_map)
    assert calls == ["block_sparse", "flex", *["gathered"] * 3]
    first, second = (record.message for record in caplog.records)
    assert first.startswith("the attention backend block_sparse fails here")
    assert second.endswith("(no valid configuration)")


def test_a_kernel_without_memory_is_tried_again(stand_ins):
    calls = stand_ins(("flex",), flex=torch.OutOfMemoryError("full"))
    qkv, block_map = cuda_case(0.2)
    for _ in range(2):
        with pytest.raises(torch.OutOfMemoryError):
            attend(*qkv, block_map=block_map)
    assert calls == ["flex", "flex"]


def test_unknown_and_absent_backends_are_refused_with_what_there_is(monkeypatch):
    monkeypatch.setitem(sys.modules, "sageattention", None)
    with pytest.raises(ValueError, match="'quick' does not exist; choose one of auto, dense"):
        load_backend("quick")
    with pytest.raises(ValueError, match=r"sageattention cannot be imported.*choose one of auto"):
        load_backend("sage")
    assert [missing(name) for name in BACKENDS[:4]] == [None] * 4


# --- kernels of other packages: the calls alone, through stand-ins ---------------------------


@pytest.fixture
def stand_in(monkeypatch):
    """Install a function under a package's name; return the calls that it gets."""
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
