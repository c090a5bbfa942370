"""The whole network with NABLA against diffusers' with shared random weights.

diffusers' own attention does not run its NABLA on a CPU (flex attention refuses or ignores the
mask), so the products behind its dispatcher are computed here, from the mask it asks for.
"""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from diffusers import Kandinsky5T2VPipeline
from diffusers.models.transformers import transformer_kandinsky as upstream
from torch.nn.attention.flex_attention import BlockMask
from torch.nn.functional import scaled_dot_product_attention

from kandinsky_core.attention import Nabla
from kandinsky_core.variants import VARIANTS

P, WINDOW, LATENT_THW = 0.45, (1, 1, 3), (3, 32, 48)


def attend_to_mask(query, key, value, attn_mask=None, **_):
    """Attention of (B, S, N, K) under a BlockMask, as diffusers means it."""
    mask = None
    if isinstance(attn_mask, BlockMask):
        blocks = attn_mask.to_dense().bool()
        mask = blocks.repeat_interleave(64, -1).repeat_interleave(64, -2)
    out = scaled_dot_product_attention(
        *(x.transpose(1, 2) for x in (query, key, value)), attn_mask=mask
    )
    return out.transpose(1, 2)


@pytest.mark.usefixtures("keep_fp32_rotation")
@torch.no_grad()
def test_velocity_with_nabla_equals_diffusers(make_pair, monkeypatch):
    monkeypatch.setattr(upstream, "dispatch_attention_fn", attend_to_mask)
    config = replace(VARIANTS["debug"], visual_cond=False)
    ours, theirs = make_pair(config)
    generator = torch.Generator().manual_seed(2)
    x = torch.randn(1, config.input_channels, *LATENT_THW, generator=generator)
    tokens = torch.randn(1, 5, config.text_dim, generator=generator)
    pooled = torch.randn(1, config.pooled_dim, generator=generator)
    t = torch.tensor([0.7])
    frames, height, width = LATENT_THW[0], LATENT_THW[1] // 2, LATENT_THW[2] // 2
    window = Kandinsky5T2VPipeline.fast_sta_nabla(
        frames, height // 8, width // 8, *WINDOW, device="cpu"
    )

    expected = theirs(
        hidden_states=x.movedim(1, -1),
        encoder_hidden_states=tokens,
        timestep=t * 1000,
        pooled_projections=pooled,
        visual_rope_pos=[torch.arange(frames), torch.arange(height), torch.arange(width)],
        text_rope_pos=torch.arange(5),
        scale_factor=(1.0, 2.0, 2.0),
        sparse_params={"sta_mask": window[None, None], "to_fractal": True, "P": P},
    ).sample.movedim(-1, 1)
    reports = []
    nabla = Nabla(P, (1, 8, 8), WINDOW, observe=reports.append)
    actual = ours(x, t, tokens, pooled, rope_scale=(1.0, 2.0, 2.0), nabla=nabla)

    assert all(0.1 < report.density.mean() < 0.9 for report in reports)
    assert (actual - expected).abs().max() / expected.std() < 1e-5
    dense = ours(x, t, tokens, pooled, rope_scale=(1.0, 2.0, 2.0))
    assert (dense - expected).abs().max() / expected.std() > 1e-2
