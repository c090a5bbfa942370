"""Counts of operations and parameters against torch's own."""

from __future__ import annotations

import sys

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from kandinsky_core.attention import attend_reference
from kandinsky_core.family.variants import VARIANTS
from kandinsky_core.models import CrossDiT
from kandinsky_core.planning.costs import count_parameters, step_cost, step_traffic
from tooling.environment import ROOT


@pytest.mark.parametrize("name", VARIANTS)
def test_parameters_are_those_of_the_network(name):
    network = CrossDiT(VARIANTS[name], device="meta")
    assert count_parameters(VARIANTS[name]) == sum(p.numel() for p in network.parameters())


@pytest.mark.parametrize("name", ["debug", "video_lite"])
def test_operations_are_what_torch_counts(name):
    config = VARIANTS[name]
    network = CrossDiT(config, device="meta")
    x = torch.zeros(1, config.input_channels, 3, 8, 12, device="meta")
    text = torch.zeros(1, 7, config.text_dim, device="meta")
    pooled = torch.zeros(1, config.pooled_dim, device="meta")
    # the specification writes its products out, and all of them are counted
    with FlopCounterMode(display=False) as counter:
        network(x, torch.zeros(1, device="meta"), text, pooled, attend=attend_reference)
    cost = step_cost(config, 3 * 4 * 6, text_tokens=7)
    # modulation and time embedding are once per call, not per token, and are not counted
    d, t = config.model_dim, config.time_dim
    modulation = 2 * d * t * (9 * config.num_visual_blocks + 6 * config.num_text_blocks + 2)
    once = modulation + 2 * (d * t + t * t + config.pooled_dim * t)
    assert counter.get_total_flops() == pytest.approx(cost.operations + once, rel=1e-6)


def test_gathers_are_the_kept_keys_and_values():
    config, blocks, size = VARIANTS["debug"], 6, 4
    kept = torch.rand(config.num_heads, blocks, blocks) < 0.4
    moved = 0
    for head in range(config.num_heads):
        for row in range(blocks):
            keys = torch.zeros(int(kept[head, row].sum()) * size, config.head_dim)
            moved += 2 * keys.nbytes
    density = float(kept.double().mean())
    traffic = step_traffic(config, blocks * size, density=density, block_size=size, item=4)
    assert traffic.gathers == pytest.approx(config.num_visual_blocks * moved)


def test_bytes_of_a_step():
    config = VARIANTS["video_pro"]
    dense = step_traffic(config, 93_696)
    assert dense.weights == 2 * count_parameters(config)
    assert (dense.maps, dense.gathers) == (0, 0)
    # in bf16 a feed-forward layer's hidden values are written and read once, four widths each
    stream = 93_696 * 4096 * 2
    assert dense.activations == 60 * (41 + 2 * 4) * stream
    sparse = [step_traffic(config, 93_696, density=p, block_size=64) for p in (0.1, 0.2)]
    assert sparse[0].maps == sparse[1].maps > 60 * 32 * 1464**2 * 8
    assert sparse[0].least == sparse[1].least > dense.least
    assert sparse[1].gathers == pytest.approx(2 * sparse[0].gathers)
    # tokens squared, as pairs of blocks
    longer = step_traffic(config, 2 * 93_696, density=0.1, block_size=64)
    assert longer.gathers == pytest.approx(4 * sparse[0].gathers)
    assert longer.maps == 4 * sparse[0].maps


def test_the_page_of_costs_is_up_to_date(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT))
    from benchmarks.costs import markdown

    for name in [name for name in sys.modules if name.split(".")[0] == "benchmarks"]:
        del sys.modules[name]
    page = ROOT / "docs" / "benchmarks" / "costs.md"
    assert markdown() == page.read_text(encoding="utf-8")


def test_sparse_attention_costs_its_share():
    config = VARIANTS["video_lite"]
    dense, sparse = (step_cost(config, 93_696, density=density) for density in (1.0, 0.1))
    assert sparse.attention == pytest.approx(dense.attention / 10)
    assert sparse.linear == dense.linear
