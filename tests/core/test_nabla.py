"""NABLA: tile order, the rule for keeping blocks, its options, and the whole network."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kandinsky_core.attention import (
    BlockMap,
    Nabla,
    Tiling,
    attend,
    attend_dense,
    attend_gathered,
    attend_reference,
    load_backend,
    missing,
    sliding_window,
    top_p_blocks,
)
from kandinsky_core.family.variants import VARIANTS
from kandinsky_core.models import CrossDiT

CONFIG = replace(VARIANTS["debug"], visual_cond=False)


# --- tiles ---------------------------------------------------------------------------------


def test_tile_order_of_a_small_grid():
    # 1 x 4 x 4 tokens numbered by rows, tiles of 2 x 2
    tokens = torch.arange(16).view(1, 16, 1)
    tiled = Tiling.of((1, 4, 4), (1, 2, 2)).tile(tokens)
    expected = [0, 1, 4, 5, 2, 3, 6, 7, 8, 9, 12, 13, 10, 11, 14, 15]
    assert tiled.flatten().tolist() == expected


@pytest.mark.parametrize("tile", [(1, 8, 8), (1, 2, 4), (2, 1, 3), (3, 4, 2), (1, 1, 1)])
@pytest.mark.parametrize("grid", [(1, 1, 1), (3, 2, 1), (2, 3, 4)])
def test_tiles_hold_neighbours_and_order_is_undone(grid, tile):
    sides = [n * size for n, size in zip(grid, tile, strict=True)]
    places = torch.cartesian_prod(*(torch.arange(side) for side in sides))[None]  # (1, S, 3)
    tiling = Tiling.of(sides, tile)
    tiled = tiling.tile(places)
    assert tiling.grid_thw == grid
    for block in tiled[0].split(tile[0] * tile[1] * tile[2]):
        extent = block.amax(0) - block.amin(0) + 1
        assert tuple(extent.tolist()) == tile
        assert not (block.amin(0) % torch.tensor(tile)).any()
    assert torch.equal(tiling.untile(tiled), places)


def test_sides_that_do_not_fit_are_named_with_the_nearest_that_do():
    with pytest.raises(ValueError, match=r"h 18 must be a multiple of 16.*fit: 16 and 32") as error:
        Tiling.of((5, 9, 16), (1, 8, 8), (1, 2, 2))
    assert "w " not in str(error.value).split("tokens:")[1]
    with pytest.raises(ValueError, match=r"w 3 .* the nearest that fit: 8 \("):
        Tiling.of((5, 8, 3), (1, 8, 8))


def test_window_counts_tiles_on_each_axis():
    window = sliding_window((5, 3, 3), (3, 1, 3))
    row = window.view(5, 3, 3, 5, 3, 3)[0, 1, 1]
    assert row.nonzero().tolist() == [[t, 1, w] for t in (0, 1) for w in (0, 1, 2)]
    assert torch.equal(window, window.T)


# --- the rule ------------------------------------------------------------------------------


def coarse(probabilities):
    """Return queries and keys of one token a block whose coarse attention has the given rows."""
    rows = torch.tensor(probabilities)
    blocks = rows.shape[-1]
    # head dim = blocks: query i times key j gives log p[i, j], scaled back by sqrt(K)
    q = rows.log() * blocks**0.5
    return q[None, None], torch.eye(blocks)[None, None]


@pytest.mark.parametrize(
    ("p", "kept"),
    [
        (0.35, [0, 0, 0, 1]),  # 0.4 alone covers it
        (0.55, [0, 0, 1, 1]),
        (0.75, [0, 1, 1, 1]),
        (0.95, [1, 1, 1, 1]),
        (1.0, [1, 1, 1, 1]),
    ],
)
def test_kept_blocks_cover_p(p, kept):
    q, k = coarse([[0.1, 0.2, 0.3, 0.4], [0.4, 0.3, 0.2, 0.1]] * 2)
    rows = top_p_blocks(q, k, 1, p)[0, 0].int().tolist()
    assert rows == [kept, kept[::-1]] * 2


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10**6), p=st.floats(0.0, 1.0), blocks=st.integers(1, 30))
def test_what_is_dropped_weighs_less_than_one_minus_p(seed, p, blocks):
    generator = torch.Generator().manual_seed(seed)
    q, k = (torch.randn(2, 2, blocks * 3, 8, generator=generator) * 2 for _ in range(2))
    kept = top_p_blocks(q, k, 3, p)
    means = [x.double().unflatten(2, (blocks, 3)).mean(3) for x in (q, k)]
    weights = torch.softmax(means[0] @ means[1].transpose(-1, -2) / 8**0.5, -1)
    assert ((weights * ~kept).sum(-1) < 1 - p + 1e-5).all()
    # and no kept block could be dropped as well
    smallest = weights.masked_fill(~kept, 2.0).amin(-1)
    assert (((weights * ~kept).sum(-1) + smallest)[kept.any(-1)] > 1 - p - 1e-5).all()
    assert not torch.where(kept, 0.0, weights).amax(-1).gt(smallest + 1e-6).any()


def test_floor_keeps_the_largest():
    q, k = coarse([[0.7, 0.1, 0.05, 0.15]] * 4)
    assert top_p_blocks(q, k, 1, 0.5)[0, 0, 0].tolist() == [True, False, False, False]
    floor = top_p_blocks(q, k, 1, 0.5, min_blocks=2)[0, 0, 0]
    assert floor.tolist() == [True, False, False, True]
    assert top_p_blocks(q, k, 1, 0.5, min_blocks=9).all()


def observe(nabla, q, k, grid):
    """Return the report of one map."""
    reports = []
    tiling = Tiling(grid, nabla.tile_thw)
    watched = replace(nabla, observe=reports.append)
    layers = watched.layers(3, attend_reference, tiling, q.device)
    out = layers[2](q, k, k)
    assert torch.equal(attend_reference(q, k, k, block_map=reports[0].block_map), out)
    return reports[0]


def test_map_is_united_with_the_window_and_reported_per_head():
    q, k = (x.expand(1, 2, 4, 4) for x in coarse([[0.85, 0.05, 0.05, 0.05]] * 4))
    q = torch.cat([q[:, :1], torch.zeros(1, 1, 4, 4)], 1)  # the second head sees all alike
    nabla = Nabla(0.7, (1, 1, 1), (1, 1, 1))
    report = observe(nabla, q, k, (1, 1, 4))
    first = torch.eye(4, dtype=torch.bool)
    first[:, 0] = True
    assert report.layer == 2
    assert torch.equal(report.block_map.kept[0, 0], first)
    # 3 of 4 equal blocks make 0.75, and the fourth is kept where it is the window's
    assert report.density[0, 0] == 7 / 16
    assert 12 / 16 <= report.density[0, 1] < 1
    assert torch.equal(report.block_map.density, report.density)
    alone = observe(replace(nabla, sta_window_thw=None), q, k, (1, 1, 4))
    assert alone.density[0].tolist() == [4 / 16, 12 / 16]


def test_dense_above_makes_single_heads_dense_and_says_so():
    q, k = (x.expand(1, 2, 4, 4) for x in coarse([[0.85, 0.05, 0.05, 0.05]] * 4))
    q = torch.cat([q[:, :1], torch.zeros(1, 1, 4, 4)], 1)
    report = observe(Nabla(0.7, (1, 1, 1), None, dense_above=0.7), q, k, (1, 1, 4))
    assert report.block_map.density.tolist() == [[0.25, 1.0]]
    assert report.density.tolist() == [[0.25, 0.75]]


@pytest.mark.parametrize(
    "wrong",
    [
        {"cdf_threshold": 1.5},
        {"cdf_threshold": -0.1},
        {"dense_above": 2.0},
        {"tile_thw": (1, 0, 8)},
        {"sta_window_thw": (0, 3, 3)},
        {"min_blocks": -1},
    ],
)
def test_impossible_options_are_refused(wrong):
    with pytest.raises(ValueError, match=r"NABLA's .* must be"):
        Nabla(**wrong)


def test_density_counts_kept_blocks():
    kept = torch.zeros(1, 2, 4, 4, dtype=torch.bool)
    kept[0, 0, 1, 2:] = True
    kept[0, 1] = True
    assert BlockMap(kept, (1, 1, 1), (1, 2, 2)).density.tolist() == [[0.125, 1.0]]


# --- the whole network ---------------------------------------------------------------------


@pytest.fixture(scope="module")
def network():
    """Return a small network whose weights, modulation included, are random and strong."""
    torch.manual_seed(0)
    model = CrossDiT(CONFIG).eval()
    for param in model.parameters():
        if param.ndim > 1:
            torch.nn.init.normal_(param, std=param.shape[1] ** -0.5)
    return model


def network_inputs(batch, latent_thw=(2, 8, 16), text_len=6):
    generator = torch.Generator().manual_seed(1)

    def normal(*shape):
        return torch.randn(*shape, generator=generator)

    return (
        normal(batch, CONFIG.input_channels, *latent_thw),
        torch.rand(batch, generator=generator),
        normal(batch, text_len, CONFIG.text_dim),
        normal(batch, CONFIG.pooled_dim),
    )


SMALL = Nabla(0.5, (1, 2, 2), (1, 1, 1))


@torch.no_grad()
@pytest.mark.parametrize("tile", [(1, 2, 2), (1, 4, 8), (2, 1, 4)])
@pytest.mark.parametrize("backend", [attend_dense, attend_gathered])
def test_nabla_at_p_1_equals_dense(network, tile, backend):
    inputs = network_inputs(2)
    scale = {"rope_scale": (1.0, 2.0, 3.16)}
    dense = network(*inputs, **scale)
    sparse = network(*inputs, **scale, attend=backend, nabla=Nabla(1.0, tile))
    assert (sparse - dense).abs().max() < 1e-5 * dense.std().clamp_min(1)


@torch.no_grad()
@pytest.mark.parametrize(
    "name",
    [
        "reference",
        "dense",
        "gathered",
        "auto",
        "compiled",
        pytest.param("flex", marks=pytest.mark.slow),
    ],
)
def test_no_backend_is_silently_dense(request, network, name):
    """The output moves with P, in the same way for every backend."""
    if name == "flex":
        request.getfixturevalue("compiled_flex")
    if missing(name) is not None:
        pytest.skip(missing(name))
    backend = load_backend(name)
    inputs = network_inputs(1, latent_thw=(4, 16, 16))
    dense = network(*inputs)
    last = dense
    for p in (0.8, 0.5, 0.2):
        nabla = Nabla(p, (1, 4, 4), (1, 1, 1))  # blocks of 16, the least that all of them take
        out = network(*inputs, attend=backend, nabla=nabla)
        assert (out - dense).norm() / dense.norm() > 1e-3
        assert (out - last).norm() / dense.norm() > 1e-3
        expected = network(*inputs, attend=attend_reference, nabla=nabla)
        assert (out - expected).abs().max() < 1e-4 * dense.std()
        last = out


@torch.no_grad()
def test_batches_and_masked_text_equal_single_runs(network):
    x, t, tokens, pooled = network_inputs(3)
    lengths = (6, 3, 1)
    mask = torch.arange(6) < torch.tensor(lengths)[:, None]
    together = network(x, t, tokens, pooled, mask, nabla=SMALL)
    for i, length in enumerate(lengths):
        row = slice(i, i + 1)
        alone = network(x[row], t[row], tokens[row, :length], pooled[row], nabla=SMALL)
        assert (together[row] - alone).abs().max() < 1e-4 * alone.std()


@torch.no_grad()
def test_every_layer_reports_its_own_map(network):
    reports = []
    network(*network_inputs(2), nabla=replace(SMALL, observe=reports.append))
    assert [report.layer for report in reports] == list(range(CONFIG.num_visual_blocks))
    heads = CONFIG.model_dim // CONFIG.head_dim
    assert all(report.block_map.kept.shape == (2, heads, 16, 16) for report in reports)
    assert all(report.block_map.grid_thw == (2, 2, 4) for report in reports)
    assert all(0 < d < 1 for report in reports for d in report.density.flatten().tolist())


@torch.no_grad()
@pytest.mark.slow
def test_compiled_network_equals_eager(network):
    torch._dynamo.reset()
    inputs = network_inputs(1)
    compiled = torch.compile(network, dynamic=False)
    outs = []
    for p in (0.8, 0.2):  # another map, the same code
        nabla = replace(SMALL, cdf_threshold=p)
        expected = network(*inputs, attend=attend, nabla=nabla)
        outs.append(compiled(*inputs, attend=attend, nabla=nabla))
        assert (outs[-1] - expected).abs().max() < 1e-4 * expected.std()
    assert (outs[1] - outs[0]).norm() / outs[0].norm() > 1e-3


def test_gradients_flow_through_nabla(network):
    inputs = network_inputs(1)
    grads = []
    for backend in (attend_reference, attend_gathered):
        network.zero_grad()
        network(*inputs, attend=backend, nabla=SMALL).square().mean().backward()
        grads.append([p.grad.clone() for p in network.parameters() if p.grad is not None])
    network.zero_grad()
    for expected, actual in zip(*grads, strict=True):
        assert (actual - expected).norm() <= 1e-4 * expected.norm() + 1e-8


def test_network_names_sizes_that_divide_into_tiles(network):
    x, *rest = network_inputs(1, latent_thw=(2, 8, 10))
    with pytest.raises(ValueError, match=r"w 10 must be a multiple of 8.* fit: 8 and 16") as error:
        network(x, *rest, nabla=Nabla(0.5, (1, 4, 4)))
    assert "\n" not in str(error.value)
    network(x, *rest, nabla=Nabla(0.5, (1, 1, 5)))


def test_a_map_for_tokens_shows_every_further_key():
    kept = torch.tensor([[True, False], [True, True]])[None, None]
    block_map = BlockMap(kept, (1, 1, 2), (1, 1, 2))
    expected = torch.tensor([[1, 1, 0, 0], [1, 1, 0, 0], [1, 1, 1, 1], [1, 1, 1, 1]]).bool()
    assert torch.equal(block_map.token_mask(), expected[None, None])
    assert torch.equal(block_map.token_mask(4), expected[None, None])
    further = block_map.token_mask(7)
    assert further.shape == (1, 1, 4, 7)
    assert torch.equal(further[..., :4], expected[None, None]) and further[..., 4:].all()
