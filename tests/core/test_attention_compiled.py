"""The compiled kernel: what it computes, what it hands on, and life without it."""

from __future__ import annotations

import shutil

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kandinsky_core import files
from kandinsky_core.attention import (
    BlockMap,
    attend,
    attend_compiled,
    attend_reference,
    auto,
    build_kernel,
    kernel_speeds,
    load_backend,
    missing,
)
from kandinsky_core.attention.backends import compiled, compiled_speed
from kandinsky_core.attention.backends.tried import Tried

needs_compiler = pytest.mark.skipif(
    not shutil.which("c++"), reason="needs a C++ compiler, which this machine lacks"
)
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 2e-2}


@pytest.fixture(scope="module")
def _built():
    build_kernel()


@pytest.fixture
def _kernel(_built, monkeypatch):
    """Provide a kernel that auto has not tried yet."""
    monkeypatch.setattr(auto, "COMPILED", Tried("the compiled kernel", auto._load_compiled))


@pytest.fixture
def without_kernel(tmp_path, monkeypatch):
    """Return a process that loaded nothing, and a cache in which nothing was built."""
    monkeypatch.setenv(files.CACHE_VARIABLE, str(tmp_path))
    monkeypatch.setattr(compiled, "_is_loaded", lambda: False)
    monkeypatch.setattr(auto, "COMPILED", Tried("the compiled kernel", auto._load_compiled))
    return tmp_path


def random_case(seed, batch, heads, blocks, block, head_dim, density, dtype=torch.float32):
    """q, k, v and a map with one row that keeps nothing."""
    generator = torch.Generator().manual_seed(seed)
    q, k, v = (
        torch.randn(batch, heads, blocks * block, head_dim, generator=generator).to(dtype)
        for _ in range(3)
    )
    kept = torch.rand(batch, heads, blocks, blocks, generator=generator) < density
    kept[0, 0, blocks // 2] = False
    return q, k, v, BlockMap(kept, (1, 1, block), (1, 1, blocks))


@needs_compiler
@pytest.mark.slow
@pytest.mark.usefixtures("_kernel")
@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    batch=st.integers(1, 2),
    heads=st.integers(1, 3),
    blocks=st.integers(1, 23),
    block=st.sampled_from([16, 48, 64, 128]),
    head_dim=st.sampled_from([64, 80, 128]),
    density=st.floats(0.02, 1.0),
    dtype=st.sampled_from(list(TOLERANCE)),
    peak=st.sampled_from([1, 4]),
)
def test_kernel_equals_reference(seed, batch, heads, blocks, block, head_dim, density, dtype, peak):
    q, k, v, block_map = random_case(seed, batch, heads, blocks, block, head_dim, density, dtype)
    q = q * peak  # peaked weights: maxima are exceeded by more and by less than the kernel's slack
    expected = attend_reference(q.float(), k.float(), v.float(), block_map=block_map)
    actual = attend_compiled(q, k, v, block_map=block_map)
    assert actual.dtype == dtype
    # where one weight outdoes the rest, results are as large as values
    scale = max(1.0, float(expected.abs().max()) / 2)
    assert (actual.float() - expected).abs().max() < TOLERANCE[dtype] * scale
    assert not actual[0, 0, blocks // 2 * block : (blocks // 2 + 1) * block].any()


@needs_compiler
@pytest.mark.usefixtures("_kernel")
def test_heads_in_pieces_and_large_scores_give_the_same(monkeypatch):
    q, k, v, block_map = random_case(1, 2, 3, 12, 16, 64, 0.4)
    q = q * 40  # differences of hundreds between scores: the running maximum has to move
    whole = attend_compiled(q, k, v, block_map=block_map)
    monkeypatch.setattr(compiled, "LISTED_AT_ONCE", 300)
    torch.testing.assert_close(attend_compiled(q, k, v, block_map=block_map), whole)
    assert (whole - attend_reference(q, k, v, block_map=block_map)).abs().max() < 1e-4


@needs_compiler
@pytest.mark.usefixtures("_kernel")
@pytest.mark.parametrize("case", ["gradient", "odd blocks", "mask", "no map"])
def test_what_the_kernel_cannot_do_is_handed_on(case, monkeypatch):
    monkeypatch.setattr(compiled, "_attend_heads", lambda *_: pytest.fail("the kernel ran"))
    block = 4 if case == "odd blocks" else 16
    q, k, v, block_map = random_case(2, 1, 2, 5, block, 64, 0.5)
    mask = torch.ones(1, q.shape[2], dtype=torch.bool) if case == "mask" else None
    kept = None if case == "no map" else block_map
    q.requires_grad_(case == "gradient")
    actual = attend_compiled(q, k, v, mask=mask, block_map=kept)
    expected = attend_reference(q, k, v, mask=mask, block_map=kept)
    torch.testing.assert_close(actual, expected, atol=1e-5, rtol=0)


@needs_compiler
@pytest.mark.usefixtures("_kernel")
@pytest.mark.parametrize(
    ("speed", "limit", "density", "expected"),
    [
        (1.4, 0.6, 0.5, "compiled"),
        (1.4, 0.4, 0.5, "gathered"),
        (1.4, 0.6, 0.95, "dense"),
        (1.4, 1.0, 0.95, "compiled"),
        (1.4, 1.0, 1.1, "dense"),
        (0.7, 1.0, 0.5, "gathered"),
        (None, None, 0.5, "compiled"),
        (None, None, 0.95, "dense"),
    ],
)
def test_auto_takes_a_built_kernel_where_it_was_not_slower(
    monkeypatch, speed, limit, density, expected
):
    taken = []
    for name in ("compiled", "gathered", "dense"):
        function = getattr(auto, f"attend_{name}")

        def watched(*args, _name=name, _function=function, **kwargs):
            taken.append(_name)
            return _function(*args, **kwargs)

        monkeypatch.setattr(auto, f"attend_{name}", watched)
    monkeypatch.setattr(auto, "kernel_speeds", lambda: {} if speed is None else {"float32": speed})
    monkeypatch.setattr(auto, "kernel_limits", lambda: {} if limit is None else {"float32": limit})
    q, k, v, block_map = random_case(3, 1, 2, 20, 16, 64, density)
    if density < 1:  # no row without a block
        block_map.kept[0, 0, 10, 3] = True
    else:
        block_map.kept[:] = True
    out = attend(q, k, v, block_map=block_map)
    assert taken == [expected]
    expected = attend_reference(q, k, v, block_map=block_map)
    torch.testing.assert_close(out, expected, atol=1e-5, rtol=0)


@needs_compiler
@pytest.mark.usefixtures("_kernel")
def test_building_measures_both_dtypes():
    assert kernel_speeds().keys() == {"float32", "bfloat16"}
    assert all(0.01 < speed < 100 for speed in kernel_speeds().values())
    limits = compiled_speed.kernel_limits()
    assert limits.keys() == {"float32", "bfloat16"}
    assert all(0 <= limit <= 1 for limit in limits.values())


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [
        ((1, 9, 5), 0.5),  # the kernel takes 1 at 0.1 and 9 at 0.9
        ((1, 9, 9), 0.9),
        ((1, 9, 20), 1.0),
        ((1, 9, 0.5), 0.05),
        ((3, 5, 1), 0.0),
        ((2, 2, 3), 1.0),
        ((2, 1, 1.5), 0.0),
    ],
)
def test_break_even_density(seconds, expected):
    assert compiled_speed._break_even(*seconds) == pytest.approx(expected)


@needs_compiler
@pytest.mark.usefixtures("_kernel")
def test_a_loaded_kernel_does_without_its_file(tmp_path, monkeypatch):
    q, k, v, block_map = random_case(5, 1, 2, 5, 16, 64, 0.5)
    expected = attend_compiled(q, k, v, block_map=block_map)
    monkeypatch.setenv(files.CACHE_VARIABLE, str(tmp_path))  # where there is none
    assert torch.equal(attend_compiled(q, k, v, block_map=block_map), expected)
    assert missing("compiled") is None


@needs_compiler
@pytest.mark.usefixtures("_kernel")
def test_a_kernel_that_fails_is_replaced(monkeypatch, caplog):
    def broken(*_):
        raise RuntimeError("illegal instruction")

    monkeypatch.setattr(compiled, "_attend_heads", broken)
    # what was measured on this machine may speak against the kernel
    monkeypatch.setattr(auto, "kernel_speeds", dict)
    monkeypatch.setattr(auto, "kernel_limits", dict)
    q, k, v, block_map = random_case(6, 1, 2, 5, 16, 64, 0.5)
    for _ in range(2):
        out = attend(q, k, v, block_map=block_map)
        torch.testing.assert_close(out, attend_reference(q, k, v, block_map=block_map))
    assert ["illegal instruction" in record.message for record in caplog.records] == [True]


def test_speeds_that_cannot_be_read_choose_nothing(without_kernel):
    assert kernel_speeds() == {}
    assert compiled_speed._measured_path().parent == without_kernel
    for text in ("[1", "[1]", '{"speed": {"float32": 1.4}}', '{"speed": 1, "up_to": 1}'):
        compiled_speed._measured_path().write_text(text, encoding="utf-8")
        compiled_speed._read.cache_clear()
        assert kernel_speeds() == compiled_speed.kernel_limits() == {}


def test_without_the_kernel_auto_says_so_once_and_goes_on(without_kernel, caplog):
    caplog.set_level("INFO")
    q, k, v, block_map = random_case(4, 1, 2, 5, 16, 64, 0.5)
    for _ in range(3):
        out = attend(q, k, v, block_map=block_map)
    torch.testing.assert_close(out, attend_reference(q, k, v, block_map=block_map))
    assert [r.message for r in caplog.records if "build-kernel" in r.message].__len__() == 1
    assert "build-kernel" in missing("compiled")
    with pytest.raises(ValueError, match="build-kernel"):
        load_backend("compiled")
    assert list(without_kernel.iterdir()) == []  # nothing was compiled by itself


def test_failed_build_is_one_sentence_and_leaves_nothing(without_kernel, monkeypatch):
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(ValueError, match=r"could not be compiled \(.+\); install a C\+\+") as error:
        build_kernel()
    assert "\n" not in str(error.value)
    assert list(without_kernel.iterdir()) == []
