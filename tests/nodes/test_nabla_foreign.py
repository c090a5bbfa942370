"""NABLA on the host's own video transformers, with tiny random weights."""

from __future__ import annotations

import logging
import math

import pytest
import torch
from einops import rearrange
from torch.nn.functional import scaled_dot_product_attention

LATENT_THW = (3, 16, 24)
TOKENS_THW = (3, 8, 12)
TILE = (1, 4, 4)
P = 0.4
GIVEN = {
    "mode": "on",
    "cdf_threshold": P,
    "window": False,
    "window_t": 1,
    "window_h": 1,
    "window_w": 1,
    "min_blocks": 0,
    "dense_above": 1.0,
    "tile": "1x4x4",
    "backend": "auto",
}


def patcher(host, config, module_name, model):
    config.set_inference_dtype(torch.float32, None)
    with torch.inference_mode(False):
        torch.manual_seed(0)
        built = getattr(host.module("comfy.model_base"), model)(config, device="cpu")
        for parameter in built.parameters():
            parameter.requires_grad_(False)
            if parameter.ndim > 1:
                torch.nn.init.normal_(parameter, std=1.5 * parameter[0].numel() ** -0.5)
            else:
                torch.nn.init.normal_(parameter, mean=float(parameter.ndim == 1), std=0.2)
    assert module_name in type(built.diffusion_model).__module__
    cpu = torch.device("cpu")
    return host.module("comfy.model_patcher").ModelPatcher(built, cpu, cpu)


@pytest.fixture
def wan(host):
    """Visual tokens alone attend to each other."""
    shape = {
        "image_model": "wan2.1", "model_type": "t2v", "dim": 128, "ffn_dim": 128, "freq_dim": 32,
        "text_dim": 32, "num_heads": 2, "num_layers": 2, "in_dim": 16, "out_dim": 16,
        "text_len": 8, "patch_size": (1, 2, 2), "qk_norm": True, "cross_attn_norm": True,
        "eps": 1e-6, "window_size": (-1, -1),
    }  # fmt: skip
    config = host.module("comfy.supported_models").WAN21_T2V(shape)
    return patcher(host, config, "wan", "WAN21")


@pytest.fixture
def hunyuan(host):
    """Visual tokens and text attend to each other jointly."""
    shape = {
        "image_model": "hunyuan_video", "in_channels": 16, "out_channels": 16, "vec_in_dim": 16,
        "context_in_dim": 32, "hidden_size": 128, "mlp_ratio": 2.0, "num_heads": 2, "depth": 1,
        "depth_single_blocks": 1, "axes_dim": [16, 24, 24], "theta": 256, "patch_size": [1, 2, 2],
        "qkv_bias": True, "guidance_embed": False, "byt5": False, "meanflow": False,
        "use_cond_type_embedding": False, "vision_in_dim": None,
    }  # fmt: skip
    config = host.module("comfy.supported_models").HunyuanVideo(shape)
    return patcher(host, config, "hunyuan", "HunyuanVideo")


@pytest.fixture(params=["wan", "hunyuan"])
def foreign(request):
    return request.getfixturevalue(request.param)


@pytest.fixture
def nabla(run):
    """Run K5_Nabla."""

    def call(model, **inputs):
        return run("K5_Nabla", model=model, **(GIVEN | inputs))[0]

    return call


@pytest.fixture
def sampled(host):
    """Two steps of native KSampler."""

    def call(model, thw=LATENT_THW, **extra):
        generator = torch.Generator().manual_seed(1)
        text = torch.randn(1, 8, 32, generator=generator)
        pooled = {"pooled_output": torch.randn(1, 16, generator=generator), **extra}
        prompt = [[text, pooled]]
        latent = {"samples": torch.zeros(1, 16, *thw)}
        (out,) = host.native.KSampler().sample(
            model, 3, 2, 1.0, "euler", "simple", prompt, prompt, latent
        )
        return out["samples"]

    return call


def by_hand(func, q, k, v, heads, **kwargs):
    """The sparse attention in raster order, from a mask of every pair of tokens."""
    visual = math.prod(TOKENS_THW)
    apart = kwargs.get("skip_reshape", False)
    if (k if apart else k.unsqueeze(1)).shape[2] != (q if apart else q.unsqueeze(1)).shape[2]:
        return func(q, k, v, heads, **kwargs)
    if not apart:
        q, k, v = (rearrange(x, "b l (n k) -> b n l k", n=heads) for x in (q, k, v))
    length = q.shape[2]
    if length < visual:
        return func(
            *(rearrange(x, "b n l k -> b l (n k)") for x in (q, k, v)), heads,
            **{name: value for name, value in kwargs.items() if name != "skip_reshape"},
        )  # fmt: skip
    (t, h, w), (tt, th, tw) = TOKENS_THW, TILE
    numbers = torch.arange(t // tt * (h // th) * (w // tw)).view(t // tt, h // th, w // tw)
    tile_of = numbers.repeat_interleave(tt, 0).repeat_interleave(th, 1).repeat_interleave(tw, 2)
    tile_of = tile_of.flatten()  # (S,)
    member = torch.nn.functional.one_hot(tile_of).float()  # (S, Q)
    pool = member / member.sum(0)
    mean_q, mean_k = (torch.einsum("bnsk,sq->bnqk", x[:, :, :visual], pool) for x in (q, k))
    coarse = (mean_q @ mean_k.transpose(-1, -2) / q.shape[-1] ** 0.5).softmax(-1)
    values, order = coarse.sort(-1)
    kept = torch.zeros_like(coarse, dtype=torch.bool).scatter(-1, order, values.cumsum(-1) >= 1 - P)
    mask = torch.ones(*q.shape[:2], length, length, dtype=torch.bool)
    mask[:, :, :visual, :visual] = kept[:, :, tile_of][..., tile_of]
    out = scaled_dot_product_attention(q, k, v, attn_mask=mask)
    if kwargs.get("skip_output_reshape", False):
        return out
    return rearrange(out, "b n l k -> b l (n k)")


def with_override(model, override):
    patched = model.clone()
    options = patched.model_options.setdefault("transformer_options", {})
    options["optimized_attention_override"] = override
    return patched


def test_sparse_equals_a_mask_of_tokens(foreign, nabla, sampled):
    expected = sampled(with_override(foreign, by_hand))
    actual = sampled(nabla(foreign))
    assert (actual - expected).abs().max() / expected.std() < 1e-4
    dense = sampled(foreign)
    assert (dense - expected).abs().max() / expected.std() > 1e-2


def test_everything_kept_equals_dense(foreign, nabla, sampled):
    dense = sampled(foreign)
    assert (sampled(nabla(foreign, cdf_threshold=1.0)) - dense).abs().max() / dense.std() < 1e-4
    assert torch.equal(sampled(nabla(foreign, mode="off")), dense)


def test_a_size_that_does_not_fit_runs_dense_and_says_so_once(wan, nabla, sampled, caplog):
    caplog.set_level(logging.INFO)
    thw = (3, 12, 24)  # 6 tokens high
    assert torch.equal(sampled(nabla(wan), thw), sampled(wan, thw))
    lines = [record.message for record in caplog.records if "runs dense" in record.message]
    assert len(lines) == 1
    assert "does not divide into NABLA tiles" in lines[0]


def test_masked_text_runs_dense_and_says_so(hunyuan, nabla, sampled, caplog):
    caplog.set_level(logging.INFO)
    mask = torch.ones(1, 8)
    mask[:, 5:] = 0
    expected = sampled(hunyuan, attention_mask=mask)
    assert torch.equal(sampled(nabla(hunyuan), attention_mask=mask), expected)
    assert any("its text is masked" in record.message for record in caplog.records)


def test_an_override_that_was_there_keeps_its_calls(wan, nabla, sampled):
    calls = []

    def before(func, *args, **kwargs):
        calls.append(args[1].shape[1])
        return func(*args, **kwargs)

    sampled(nabla(with_override(wan, before)))
    assert set(calls) == {8}  # text; self-attention is ours
    assert wan.model_options["transformer_options"] == {}


def test_a_second_node_takes_the_place_of_the_first(wan, nabla, sampled):
    twice = sampled(nabla(nabla(wan, cdf_threshold=0.1)))
    assert torch.equal(twice, sampled(nabla(wan)))


def test_auto_and_models_without_a_grid_are_refused_in_a_sentence(wan, nabla):
    with pytest.raises(ValueError, match=r"mode: auto from checkpoint reads.*choose on"):
        nabla(wan, mode="auto from checkpoint")
    flat = wan.clone()
    flat.model = torch.nn.Module()
    flat.model.diffusion_model = torch.nn.Module()
    with pytest.raises(ValueError, match=r"no patches of time, height and width"):
        nabla(flat)
