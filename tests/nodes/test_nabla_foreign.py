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
TEXT = 8
P = 0.4
EMPTY = {"samples": torch.zeros(1, 16, *LATENT_THW)}
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
def make_wan(host):
    """Visual tokens alone attend to each other."""

    def make(**changes):
        shape = {
            "image_model": "wan2.1", "model_type": "t2v", "dim": 128, "ffn_dim": 128,
            "freq_dim": 32, "text_dim": 32, "num_heads": 2, "num_layers": 2, "in_dim": 16,
            "out_dim": 16, "text_len": 8, "patch_size": (1, 2, 2), "qk_norm": True,
            "cross_attn_norm": True, "eps": 1e-6, "window_size": (-1, -1),
        }  # fmt: skip
        config = host.module("comfy.supported_models").WAN21_T2V(shape | changes)
        return patcher(host, config, "wan", "WAN21")

    return make


@pytest.fixture
def wan(make_wan):
    return make_wan()


@pytest.fixture
def make_hunyuan(host):
    """Visual tokens and text attend to each other jointly."""

    def make(**changes):
        shape = {
            "image_model": "hunyuan_video", "in_channels": 16, "out_channels": 16,
            "vec_in_dim": 16, "context_in_dim": 32, "hidden_size": 128, "mlp_ratio": 2.0,
            "num_heads": 2, "depth": 1, "depth_single_blocks": 1, "axes_dim": [16, 24, 24],
            "theta": 256, "patch_size": [1, 2, 2], "qkv_bias": True, "guidance_embed": False,
            "byt5": False, "meanflow": False, "use_cond_type_embedding": False,
            "vision_in_dim": None,
        }  # fmt: skip
        config = host.module("comfy.supported_models").HunyuanVideo(shape | changes)
        return patcher(host, config, "hunyuan", "HunyuanVideo")

    return make


@pytest.fixture
def hunyuan(make_hunyuan):
    return make_hunyuan()


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
def prompt():
    """Text of 8 tokens."""
    generator = torch.Generator().manual_seed(1)
    tokens = torch.randn(1, TEXT, 32, generator=generator)
    return [[tokens, {"pooled_output": torch.randn(1, 16, generator=generator)}]]


@pytest.fixture
def sampled(host, prompt):
    """Two steps of native KSampler."""

    def call(model, thw=LATENT_THW, **extra):
        ((tokens, pooled),) = prompt
        text = [[tokens, pooled | extra]]
        latent = {"samples": torch.zeros(1, 16, *thw)}
        (out,) = host.native.KSampler().sample(
            model, 3, 2, 1.0, "euler", "simple", text, text, latent
        )
        return out["samples"]

    return call


@pytest.fixture
def said(caplog):
    """Return what the log says of NABLA."""
    caplog.set_level(logging.INFO)
    return lambda: [each.message for each in caplog.records if "NABLA (" in each.message]


def by_hand(text, tokens_thw=TOKENS_THW, tile=TILE, text_first=False):
    """Override: the sparse attention in raster order, from a mask of every pair of tokens."""
    visual = math.prod(tokens_thw)
    (t, h, w), (tt, th, tw) = tokens_thw, tile
    numbers = torch.arange(t // tt * (h // th) * (w // tw)).view(t // tt, h // th, w // tw)
    tile_of = numbers.repeat_interleave(tt, 0).repeat_interleave(th, 1).repeat_interleave(tw, 2)
    tile_of = tile_of.flatten()  # (S,)
    member = torch.nn.functional.one_hot(tile_of).float()  # (S, Q)
    pool = member / member.sum(0)
    seen = slice(text, None) if text_first else slice(0, visual)

    def override(func, q, k, v, heads, **kwargs):
        lengths = {(x if kwargs.get("skip_reshape") else x[:, None]).shape[2] for x in (q, k)}
        if lengths != {visual + text}:
            return func(q, k, v, heads, **kwargs)
        if not kwargs.get("skip_reshape", False):
            q, k, v = (rearrange(x, "b l (n k) -> b n l k", n=heads) for x in (q, k, v))
        mean_q, mean_k = (torch.einsum("bnsk,sq->bnqk", x[:, :, seen], pool) for x in (q, k))
        coarse = (mean_q @ mean_k.transpose(-1, -2) / q.shape[-1] ** 0.5).softmax(-1)
        values, order = coarse.sort(-1)
        covers = values.cumsum(-1) >= 1 - P
        kept = torch.zeros_like(coarse, dtype=torch.bool).scatter(-1, order, covers)
        mask = torch.ones(*q.shape[:2], visual + text, visual + text, dtype=torch.bool)
        mask[:, :, seen, seen] = kept[:, :, tile_of][..., tile_of]
        out = scaled_dot_product_attention(q, k, v, attn_mask=mask)
        if kwargs.get("skip_output_reshape", False):
            return out
        return rearrange(out, "b n l k -> b l (n k)")

    return override


def with_override(model, override):
    patched = model.clone()
    options = patched.model_options.setdefault("transformer_options", {})
    options["optimized_attention_override"] = override
    return patched


def around_it(model):
    """Return what another node makes of a MODEL that chains to the override in it."""
    inner = model.model_options["transformer_options"]["optimized_attention_override"]
    return with_override(model, lambda func, *args, **kwargs: inner(func, *args, **kwargs))


def apart(actual, expected):
    """Largest difference, in standard deviations of what is expected."""
    return (actual - expected).abs().max() / expected.std()


@pytest.mark.parametrize(("family", "text"), [("wan", 0), ("hunyuan", TEXT)])
def test_sparse_equals_a_mask_of_tokens(request, nabla, sampled, family, text):
    foreign = request.getfixturevalue(family)
    expected = sampled(with_override(foreign, by_hand(text)))
    assert apart(sampled(nabla(foreign)), expected) < 1e-4
    assert apart(sampled(foreign), expected) > 1e-2


def test_sparse_is_the_same_partially_loaded(foreign, nabla, sampled, partially):
    sparse = nabla(foreign)
    expected = sampled(sparse)
    partially()
    assert torch.equal(sampled(sparse), expected)
    partially.check(sparse)


def test_text_may_stand_first_as_on_newer_hosts(make_hunyuan, nabla, sampled):
    hunyuan = make_hunyuan(depth=2, depth_single_blocks=0)
    for block in hunyuan.model.diffusion_model.double_blocks:
        block.flipped_img_txt = False
    expected = sampled(with_override(hunyuan, by_hand(TEXT, text_first=True)))
    wrong = sampled(with_override(hunyuan, by_hand(TEXT)))
    assert apart(sampled(nabla(hunyuan)), expected) < 1e-4
    assert apart(wrong, expected) > 1e-2


def test_everything_kept_equals_dense(foreign, nabla, sampled):
    dense = sampled(foreign)
    assert apart(sampled(nabla(foreign, cdf_threshold=1.0)), dense) < 1e-4
    assert torch.equal(sampled(nabla(foreign, mode="off")), dense)


def test_a_size_that_does_not_fit_runs_dense_and_says_so_once(wan, nabla, sampled, said):
    thw = (3, 12, 24)  # 6 tokens high
    assert torch.equal(sampled(nabla(wan), thw), sampled(wan, thw))
    (line,) = said()
    assert "runs dense: latent size (3, 12, 24) (t, h, w)" in line
    assert "h 12 must be a multiple of 8, the nearest that fit: 8 and 16" in line


def test_masked_text_runs_dense_and_says_so(hunyuan, nabla, sampled, said):
    mask = torch.ones(1, TEXT)
    mask[:, 5:] = 0
    expected = sampled(hunyuan, attention_mask=mask)
    assert torch.equal(sampled(nabla(hunyuan), attention_mask=mask), expected)
    assert ["its text is masked" in line for line in said()] == [True]


def test_reference_frames_before_the_visual_tokens_run_dense_and_say_so(
    make_wan, hunyuan, nabla, sampled, said
):
    wan = make_wan(in_dim_ref_conv=16)
    frame = torch.randn(1, 16, 1, *LATENT_THW[1:], generator=torch.Generator().manual_seed(2))
    for model, given in ((wan, {"reference_latents": [frame]}), (hunyuan, {"ref_latent": frame})):
        expected = sampled(model, **given)
        assert apart(sampled(model), expected) > 1e-2  # it is seen
        assert torch.equal(sampled(nabla(model), **given), expected)
    ours, theirs = said()
    assert "its 384 tokens are not the 288" in ours
    assert "a reference stand among the visual" in theirs


def test_text_as_long_as_the_video_is_not_taken_for_it(wan, hunyuan, nabla, sampled, said):
    thw, small = (2, 4, 4), {"tile": "1x2x2"}  # 8 tokens, as in the text
    assert torch.equal(sampled(nabla(wan, **small), thw), sampled(wan, thw))
    (line,) = said()
    assert "8 tokens each and look alike" in line
    expected = sampled(with_override(hunyuan, by_hand(TEXT, (2, 2, 2), (1, 2, 2))), thw)
    assert apart(sampled(nabla(hunyuan, **small), thw), expected) < 1e-4
    assert apart(sampled(hunyuan, thw), expected) > 1e-2
    assert said() == [line]


def test_without_a_choice_the_tile_divides_the_size_and_is_named(wan, nabla, sampled, said):
    own = {"tile": "from checkpoint"}
    thw = (3, 20, 24)  # 10 x 12 tokens: 10 x 6 of them are nearest to 8 x 8
    expected = sampled(with_override(wan, by_hand(0, (3, 10, 12), (1, 10, 6))), thw)
    assert apart(sampled(nabla(wan, **own), thw), expected) < 1e-4
    assert apart(sampled(wan, thw), expected) > 1e-2
    (line,) = said()
    assert "tiles of 1x10x6 tokens, which divide its (3, 10, 12)" in line
    thw = (3, 46, 24)  # 23 tokens high
    assert torch.equal(sampled(nabla(wan, **own), thw), sampled(wan, thw))
    assert "latent size (46, 24) (h, w) divides into no tiles of 32 to 128" in said()[-1]


@pytest.mark.parametrize(
    ("tokens", "tile"),
    [((32, 48), (8, 8)), ((30, 52), (5, 13)), ((45, 80), (9, 8)), ((34, 60), (17, 5))],
)
def test_tiles_of_usual_sizes(host, tokens, tile):
    fit = host.part("nodes.host.attention.foreign_place").fit_tile
    assert fit((21, *tokens), (1, 2, 2)) == (1, *tile)


def test_an_override_that_was_there_keeps_its_calls(wan, nabla, sampled):
    calls = []

    def before(func, *args, **kwargs):
        calls.append(args[1].shape[1])
        return func(*args, **kwargs)

    sampled(nabla(with_override(wan, before)))
    assert set(calls) == {TEXT}  # self-attention is ours
    assert wan.model_options["transformer_options"] == {}


def test_a_second_node_takes_the_place_of_the_first(wan, nabla, sampled, said):
    twice = sampled(nabla(nabla(wan, cdf_threshold=0.1)))
    assert torch.equal(twice, sampled(nabla(wan)))
    first = nabla(wan, tile="1x2x2")
    thw = (3, 12, 24)  # takes tiles of the first node alone
    assert torch.equal(sampled(nabla(around_it(first)), thw), sampled(wan, thw))
    assert len(said()) == 1


def test_off_undoes_the_node_before(wan, nabla, sampled):
    dense = sampled(wan)
    assert apart(sampled(nabla(wan)), dense) > 1e-2
    assert torch.equal(sampled(nabla(nabla(wan), mode="off")), dense)
    around = around_it(nabla(wan))
    assert apart(sampled(around), dense) > 1e-2
    assert torch.equal(sampled(nabla(around, mode="off")), dense)

    def before(func, *args, **kwargs):
        return func(*args, **kwargs)

    off = nabla(nabla(with_override(wan, before)), mode="off")
    assert off.model_options["transformer_options"]["optimized_attention_override"] is before


def test_the_window_is_made_once_for_each_call_of_the_network(
    host, wan, nabla, sampled, monkeypatch
):
    module, made = host.part("nodes.host.attention.foreign"), []
    make = module.sliding_window
    monkeypatch.setattr(module, "sliding_window", lambda *args: made.append(args) or make(*args))
    sampled(nabla(wan, window=True))
    assert len(made) == 2  # steps; there are two layers


def test_inspector_draws_the_layers_of_other_models(run, foreign, nabla, prompt, sampled):
    given = {"positive": prompt, "negative": prompt, "latent": EMPTY, "seed": 3}
    given |= {"layer": 1, "head": 1, "step": 1, "steps": 2, "cfg": 1.0}
    full = nabla(foreign, cdf_threshold=1.0)
    density, block_map, made, attended = run("K5_NablaInspector", model=full, **given)
    assert apart(made["samples"], sampled(full)) < 1e-4
    assert (block_map[0, 40:552, 40:552] == 1).all(-1).float().mean() > 0.9
    cell = density[0, 100, 100]
    assert (density[0, 60:100, 60:500] == cell).all()
    assert attended.shape == (3, 128, 192, 3)

    class Vae:
        def decode(self, samples):
            frames = torch.linspace(0, 1, 9).view(1, 9, 1, 1, 1)
            return frames.expand(len(samples), 9, 128, 192, 3)

    density, _, made, attended = run("K5_NablaInspector", model=nabla(foreign), vae=Vae(), **given)
    assert (density[0, 100, 100] != cell).any()
    assert apart(made["samples"], sampled(nabla(foreign))) < 1e-4
    assert attended[:, :, :, 1].flatten(1).amax(1)[2] == 1
    with pytest.raises(ValueError, match=r"no map of layer 2.*has 2 layers and 2 heads"):
        run("K5_NablaInspector", model=full, **(given | {"layer": 2}))
    with pytest.raises(ValueError, match=r"steps, cfg: 0 reads.*steps 0 and cfg 1, give both"):
        run("K5_NablaInspector", model=full, **(given | {"steps": 0}))
    with pytest.raises(ValueError, match="attends densely"):
        run("K5_NablaInspector", model=foreign, **given)


def test_auto_and_models_without_a_grid_are_refused_in_a_sentence(wan, nabla):
    with pytest.raises(ValueError, match=r"mode: auto from checkpoint reads.*choose on"):
        nabla(wan, mode="auto from checkpoint")
    flat = wan.clone()
    flat.model = torch.nn.Module()
    flat.model.diffusion_model = torch.nn.Module()
    with pytest.raises(ValueError, match=r"no patches of time, height and width"):
        nabla(flat)
