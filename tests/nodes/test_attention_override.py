"""The host's attention override on our MODEL: what other packs put in place of its attention."""

from __future__ import annotations

import pytest
import torch
from einops import rearrange

from kandinsky_core.attention import Nabla, attend_dense
from kandinsky_core.checkpoint import load_transformer
from kandinsky_core.flow import make_noise, timesteps
from kandinsky_core.flow import sample as core_sample
from kandinsky_core.guided_model import GuidedModel
from kandinsky_core.text import TextConditioning

SPARSE = Nabla(0.3, (1, 2, 2), (1, 1, 1))
NODE = {
    "mode": "on", "cdf_threshold": 0.3, "window": True, "window_t": 1, "window_h": 1,
    "window_w": 1, "min_blocks": 0, "dense_above": 1.0, "tile": "1x2x2", "backend": "auto",
}  # fmt: skip
VISUAL = 2 * 4 * 4
HALF = 0.5


def with_override(model, override):
    patched = model.clone()
    patched.model_options.setdefault("transformer_options", {})["optimized_attention_override"] = (
        override
    )
    return patched


def halved(func, *args, **kwargs):
    return HALF * func(*args, **kwargs)


def halved_dense(q, k, v, *, mask=None, block_map=None):
    out = attend_dense(q, k, v, mask=mask, block_map=block_map)
    return out if block_map is not None else HALF * out


@pytest.fixture
def by_core(model, prompts):
    """Return what the core makes of the noise and prompts of `sample`."""

    def call(nabla=None, attend=attend_dense):
        network, info = load_transformer(model.model.info.path, dtype=torch.float32)
        text = [
            TextConditioning(
                tokens, torch.ones(tokens.shape[:2], dtype=torch.bool), extra["pooled_output"]
            )
            for ((tokens, extra),) in prompts
        ]
        rope_scale = info.settings.rope_scale_for(64, 64)
        guided = GuidedModel(
            network, *text, scale=3.0, rope_scale=rope_scale, nabla=nabla, attend=attend
        )
        noise = make_noise((1, 16, 2, 8, 8), seed=7)
        *_, last = core_sample(guided, noise, timesteps(4, info.settings.shift))
        return model.model.process_latent_out(last.latents)

    return call


def test_every_dense_attention_asks_it(model, sample, by_core):
    out = sample(with_override(model, halved))
    assert (out - by_core(attend=halved_dense)).abs().max() < 1e-4
    assert (out - sample(model)).abs().max() > 1e-3


def test_nabla_stays_on_top_and_leaves_it_the_dense_calls(run, model, sample, by_core):
    for first, then in ((True, False), (False, True)):
        patched = with_override(model, halved) if first else model
        patched = run("K5_Nabla", model=patched, **NODE)[0]
        patched = with_override(patched, halved) if then else patched
        out = sample(patched)
        assert (out - by_core(SPARSE, halved_dense)).abs().max() < 1e-4
    assert (out - by_core(SPARSE)).abs().max() > 1e-3


def test_it_is_called_as_the_host_calls_it(model, sample, host):
    calls = []

    def looks(func, q, k, v, heads, mask=None, **kwargs):
        calls.append((q.shape, k.shape, heads, kwargs["transformer_options"]["sigmas"].shape))
        assert kwargs["_inside_attn_wrapper"]
        return func(q, k, v, heads, mask=mask, **kwargs)

    def flat(func, q, k, v, heads, mask=None, **_kwargs):
        q, k, v = (rearrange(x, "b n l k -> b l (n k)") for x in (q, k, v))
        return rearrange(func(q, k, v, heads, mask=mask), "b l (n k) -> b n l k", n=heads)

    def of_the_host(_func, *args, **kwargs):
        name = "comfy.ldm.modules.attention"
        return host.module(name).attention_pytorch(*args, **kwargs)

    expected = sample(model)
    assert torch.equal(sample(with_override(model, looks)), expected)
    heads = model.model.info.config.num_heads
    assert {q[1] for q, *_ in calls} == {heads} == {each[2] for each in calls}
    assert {(q[2], k[2]) for q, k, *_ in calls} >= {(VISUAL, VISUAL)}
    assert any(q[2] == VISUAL != k[2] for q, k, *_ in calls)
    assert (sample(with_override(model, flat)) - expected).abs().max() < 1e-5
    assert (sample(with_override(model, of_the_host)) - expected).abs().max() < 1e-5


def test_masked_text_stays_masked(model, prompts, sample):
    ((tokens, extra),) = prompts[0]
    mask = torch.ones(tokens.shape[:2])
    mask[:, -2:] = 0
    given = {"positive": [[tokens, {**extra, "attention_mask": mask}]]}
    expected = sample(model, **given)
    assert (expected - sample(model)).abs().max() > 1e-3
    masks = []

    def as_bias(func, q, k, v, heads, mask=None, **kwargs):
        if mask is not None:
            masks.append(mask)
            mask = torch.zeros(mask.shape).masked_fill(~mask, -torch.inf)
        return func(q, k, v, heads, mask=mask, **kwargs)

    assert (sample(with_override(model, halved), **given) - expected).abs().max() > 1e-3
    assert (sample(with_override(model, as_bias), **given) - expected).abs().max() < 1e-4
    assert masks
