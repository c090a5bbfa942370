"""The whole network with NABLA against diffusers' with shared random weights."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from kandinsky_core.attention import Nabla
from kandinsky_core.family.variants import VARIANTS

P, WINDOW, LATENT_THW = 0.45, (1, 1, 3), (3, 32, 48)


@pytest.mark.usefixtures("keep_fp32_rotation", "upstream_nabla")
@torch.no_grad()
def test_velocity_with_nabla_equals_diffusers(make_pair, run_upstream):
    config = replace(VARIANTS["debug"], visual_cond=False)
    ours, theirs = make_pair(config)
    generator = torch.Generator().manual_seed(2)
    x = torch.randn(1, config.input_channels, *LATENT_THW, generator=generator)
    tokens = torch.randn(1, 5, config.text_dim, generator=generator)
    pooled = torch.randn(1, config.pooled_dim, generator=generator)
    t = torch.tensor([0.7])
    reports = []
    nabla = Nabla(P, (1, 8, 8), WINDOW, observe=reports.append)

    expected = run_upstream(theirs, x, t, tokens, pooled, rope_scale=(1.0, 2.0, 2.0), nabla=nabla)
    actual = ours(x, t, tokens, pooled, rope_scale=(1.0, 2.0, 2.0), nabla=nabla)

    assert all(0.1 < report.density.mean() < 0.9 for report in reports)
    assert (actual - expected).abs().max() / expected.std() < 1e-5
    dense = ours(x, t, tokens, pooled, rope_scale=(1.0, 2.0, 2.0))
    assert (dense - expected).abs().max() / expected.std() > 1e-2
