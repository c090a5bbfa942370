"""Native nodes that reach into guidance, blocks and time on our MODEL."""

from __future__ import annotations

import copy

import pytest
import torch

from kandinsky_core.checkpoint import load_transformer
from kandinsky_core.flow import VisualCondition, make_noise

GUIDANCE = {
    "CFGZeroStar": ("nodes_cfg", {}),
    "CFGNorm": ("nodes_cfg", {"strength": 0.5}),
    "FreSca": ("nodes_fresca", {"scale_low": 1.0, "scale_high": 2.0, "freq_cutoff": 1}),
    "APG": ("nodes_apg", {"eta": 0.5, "norm_threshold": 5.0, "momentum": 0.0}),
    "Mahiro": ("nodes_mahiro", {}),
    "TCFG": ("nodes_tcfg", {}),
}
FRAMES, WINDOW = 33, 17  # 9 and 5 latent frames


@pytest.fixture
def clip_of_two_windows(run):
    """Return an empty latent that two windows with one latent frame in common cover."""
    return run("K5_EmptyLatent", width=64, height=64, length=FRAMES, batch_size=1)[0]


@pytest.fixture
def in_windows(host):
    """Return the host's context windows."""
    node = host.extra("nodes_context_windows").WanContextWindowsManualNode

    def patch(model, length=WINDOW):
        return node.execute(model, length, 1, "standard_static", 1, False, "pyramid").result[0]

    return patch


@pytest.mark.parametrize("name", GUIDANCE)
def test_guidance_nodes_change_both_samplers_alike(host, model, sample, ksample, name):
    module, settings = GUIDANCE[name]
    (patched,) = getattr(host.extra(module), name).execute(model, **settings).result
    ours = sample(patched)
    assert (ours - sample(model)).abs().max() > 1e-3
    assert (ours - ksample(patched)).abs().max() < 1e-4


def test_skip_layer_guidance_leaves_out_that_block(host, model, prompts, sample):
    skipped, scale, cfg = 3, 2.0, 3.0
    node = host.extra("nodes_slg").SkipLayerGuidanceDiT
    (patched,) = node.execute(model, scale, 0.0, 1.0, str(skipped), "").result

    whole, info = load_transformer(model.model.info.path, dtype=torch.float32)
    shorter = copy.deepcopy(whole)
    del shorter.visual_transformer_blocks[skipped]
    noise = make_noise((1, 16, 2, 8, 8), seed=7)
    x = VisualCondition().network_input(noise, visual_cond=True)
    rope_scale = info.settings.rope_scale_for(64, 64)

    def velocity(network, prompt):
        ((tokens, extra),) = prompt
        pooled = extra["pooled_output"]
        return network(x, torch.ones(1), tokens, pooled, rope_scale=rope_scale)

    positive, negative = (velocity(whole, prompt) for prompt in prompts)
    weaker = velocity(shorter, prompts[0])
    guided = negative + cfg * (positive - negative)
    expected = noise - guided + scale * (weaker - positive)
    found = sample(patched, steps=1, cfg=cfg)
    assert (found - model.model.process_latent_out(expected)).abs().max() < 1e-4
    assert (weaker - positive).abs().max() > 1e-2


def test_a_replaced_block_can_call_the_one_it_stands_for(model, sample):
    seen = []

    def patch(args, extra):
        seen.append(args["img"].shape)
        return extra["original_block"](args)

    patched = model.clone()
    patched.set_model_patch_replace(patch, "dit", "double_block", 2)
    assert torch.equal(sample(patched, steps=2, cfg=1.0), sample(model, steps=2, cfg=1.0))
    assert seen == [(1, 2 * 4 * 4, model.model.info.config.model_dim)] * 2


def test_one_window_over_everything_changes_nothing(model, sample, in_windows):
    assert torch.equal(sample(in_windows(model)), sample(model))


def test_windows_give_both_samplers_the_same(
    model, sample, ksample, in_windows, clip_of_two_windows
):
    windowed = in_windows(model)
    ours = sample(windowed, latent=clip_of_two_windows)
    assert (ours - sample(model, latent=clip_of_two_windows)).abs().max() > 1e-2
    assert (ours - ksample(windowed, latent=clip_of_two_windows)).abs().max() < 1e-4


def test_only_windows_at_the_ends_get_the_given_frames(
    run, model, vae, prompts, sample, in_windows, monkeypatch
):
    masks, network = [], model.model.diffusion_model
    embed = network.visual_embeddings.forward
    monkeypatch.setattr(
        network.visual_embeddings,
        "forward",
        lambda x: (masks.append(x[0, -1, :, 0, 0].tolist()), embed(x))[1],
    )
    pictures = torch.rand(2, 64, 64, 3, generator=torch.Generator().manual_seed(0))
    positive, negative, latent = run(
        "K5_FirstLastFrame",
        positive=prompts[0],
        negative=prompts[1],
        vae=vae,
        first=pictures[:1],
        last=pictures[1:],
        width=64,
        height=64,
        length=49,
        batch_size=1,
    )
    out = sample(in_windows(model), positive=positive, negative=negative, latent=latent, steps=2)
    begins, between, ends = [1, 0, 0, 0, 0], [0, 0, 0, 0, 0], [0, 0, 0, 0, 1]
    # 13 latent frames in windows of five: two steps, two prompts
    assert sorted(masks) == sorted([begins, between, ends] * 4)
    entry = positive[0][1]
    assert (out[:, :, :1] - entry["k5_first_frame"]).abs().max() < 1e-5
    assert (out[:, :, -1:] - entry["k5_last_frame"]).abs().max() < 1e-5


def test_nabla_is_sparse_within_windows(run, model, sample, in_windows, clip_of_two_windows):
    choices = {"window_t": 1, "window_h": 1, "window_w": 1, "min_blocks": 0, "dense_above": 1.0}

    def sampled(cdf_threshold):
        (sparse,) = run(
            "K5_Nabla",
            model=model,
            mode="on",
            cdf_threshold=cdf_threshold,
            window=True,
            tile="1x2x2",
            backend="auto",
            **choices,
        )
        return sample(in_windows(sparse), latent=clip_of_two_windows)

    dense = sample(in_windows(model), latent=clip_of_two_windows)
    assert (sampled(1.0) - dense).abs().max() < 1e-4
    assert (sampled(0.3) - dense).abs().max() > 1e-2
