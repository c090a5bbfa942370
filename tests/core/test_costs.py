"""Counts of operations and parameters against torch's own."""

from __future__ import annotations

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from kandinsky_core.attention import attend_reference
from kandinsky_core.costs import count_parameters, step_cost
from kandinsky_core.models import CrossDiT
from kandinsky_core.variants import VARIANTS


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


def test_sparse_attention_costs_its_share():
    config = VARIANTS["video_lite"]
    dense, sparse = (step_cost(config, 93_696, density=density) for density in (1.0, 0.1))
    assert sparse.attention == pytest.approx(dense.attention / 10)
    assert sparse.linear == dense.linear
