"""NABLA on a MODEL: the checkpoint's own, and what the node chooses."""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import replace

import pytest
import torch

from kandinsky_core.attention import Nabla, attend_gathered, attend_reference
from kandinsky_core.checkpoint import load_transformer
from kandinsky_core.flow import make_noise, timesteps
from kandinsky_core.flow import sample as core_sample
from kandinsky_core.guided_model import GuidedModel
from kandinsky_core.text import TextConditioning

AUTO, ON, OFF = "auto from checkpoint", "on", "off"
TOLERANCE = 1e-5
SPARSE = Nabla(0.3, (1, 2, 2), (1, 1, 1))


@pytest.fixture
def patch(run):
    """Run K5_Nabla with what is sparse on a grid of a few tiles."""

    def call(model, **inputs):
        given = {
            "mode": ON,
            "cdf_threshold": 0.3,
            "window": True,
            "window_t": 1,
            "window_h": 1,
            "window_w": 1,
            "min_blocks": 0,
            "dense_above": 1.0,
            "tile": "1x2x2",
            "backend": "auto",
        }
        return run("K5_Nabla", model=model, **(given | inputs))[0]

    return call


@pytest.fixture
def tiny(load_model, tiny_file):
    return load_model(tiny_file)


@contextmanager
def trained_with(model, **settings):
    """Yield a MODEL whose checkpoint settings say something else."""
    info = model.model.info
    model.model.info = replace(info, settings=replace(info.settings, larger=None, **settings))
    try:
        yield model
    finally:
        model.model.info = info


def by_core(model, prompts, nabla):
    """Return what the core makes of the same noise and prompts."""
    network, info = load_transformer(model.model.info.path, dtype=torch.float32)
    text = [
        TextConditioning(
            tokens, torch.ones(tokens.shape[:2], dtype=torch.bool), extra["pooled_output"]
        )
        for ((tokens, extra),) in prompts
    ]
    rope_scale = info.settings.rope_scale_for(64, 64)
    guided = GuidedModel(network, *text, scale=3.0, rope_scale=rope_scale, nabla=nabla)
    noise = make_noise((1, 16, 2, 8, 8), seed=7)
    *_, last = core_sample(guided, noise, timesteps(4, info.settings.shift))
    return model.model.process_latent_out(last.latents)


def test_the_node_gives_what_the_core_gives_in_every_sampler(
    model, prompts, patch, sample, ksample
):
    expected = by_core(model, prompts, SPARSE)
    sparse = patch(model, tile="from checkpoint")
    assert (sample(sparse) - expected).abs().max() < 1e-4
    assert (ksample(sparse) - expected).abs().max() < 1e-4
    assert (sample(model) - expected).abs().max() > 1e-3
    assert torch.equal(sample(patch(model, mode=OFF)), sample(model))


def test_everything_kept_equals_dense(tiny, patch, sample):
    dense = sample(tiny)
    assert (sample(patch(tiny, cdf_threshold=1.0)) - dense).abs().max() < TOLERANCE
    assert (sample(patch(tiny, dense_above=0.0)) - dense).abs().max() < TOLERANCE
    assert (sample(patch(tiny, min_blocks=99)) - dense).abs().max() < TOLERANCE
    window = {"window_t": 3, "window_h": 7, "window_w": 7}
    assert (sample(patch(tiny, **window)) - dense).abs().max() < TOLERANCE
    assert (sample(patch(tiny, **window, window=False)) - dense).abs().max() > 1e-3


def test_a_checkpoint_trained_with_nabla_runs_with_it_unless_told_otherwise(
    tiny, prompts, patch, sample
):
    dense = sample(tiny)
    assert torch.equal(sample(patch(tiny, mode=AUTO)), dense)
    with trained_with(
        tiny, attention="nabla", nabla_p=0.3, sta_window_thw=(1, 1, 1), tile_thw=(1, 2, 2)
    ):
        own = sample(tiny)
        assert (own - by_core(tiny, prompts, SPARSE)).abs().max() < 1e-4
        auto = patch(tiny, mode=AUTO, cdf_threshold=0.9, window_h=7, tile="1x4x4")
        assert torch.equal(sample(auto), own)
        assert torch.equal(sample(patch(tiny, mode=OFF)), dense)
        assert (sample(patch(tiny, mode=AUTO, min_blocks=99)) - dense).abs().max() < TOLERANCE
    assert (own - dense).abs().max() > 1e-3


def test_branches_of_a_workflow_do_not_see_each_other(tiny, patch, sample):
    dense = sample(tiny)
    one, two = patch(tiny), patch(tiny, cdf_threshold=1.0)
    first = sample(one)
    assert (sample(two) - dense).abs().max() < TOLERANCE
    assert torch.equal(sample(one), first)
    assert torch.equal(sample(tiny), dense)
    again = patch(one, cdf_threshold=1.0)
    assert (sample(again) - dense).abs().max() < TOLERANCE


def test_batch_equals_singles(run, tiny, patch, sample):
    sparse = patch(tiny)
    (batch,) = run("K5_EmptyLatent", width=64, height=64, length=5, batch_size=3)
    singles = [
        sample(sparse, latent={"samples": batch["samples"][:1], "batch_index": [i]})
        for i in range(3)
    ]
    together = sample(sparse, latent=batch)
    assert (together - torch.cat(singles)).abs().max() < 2e-5  # of results up to 10


def test_tile_is_a_choice(tiny, prompts, patch, sample):
    expected = by_core(tiny, prompts, Nabla(0.3, (1, 4, 4), None))
    out = sample(patch(tiny, tile="1x4x4", window=False))
    assert (out - expected).abs().max() < 1e-4


def test_size_that_does_not_divide_into_tiles_is_named_in_pixels(run, tiny, patch, sample):
    latent = {"samples": torch.zeros(1, 16, 2, 8, 12)}
    sparse = patch(tiny, tile="1x4x4")
    size = {"width": 96, "height": 64, "length": 5, "batch_size": 1}
    with pytest.raises(ValueError, match=r"64x96.*64 and 128.*mode off"):
        run("K5_EmptyLatent", **size, model=sparse)
    assert run("K5_EmptyLatent", **size, model=tiny)[0]["samples"].shape == (1, 16, 2, 8, 12)
    with pytest.raises(ValueError, match=r"64x96.*64 and 128.*mode off"):
        sample(sparse, latent=latent)
    assert sample(patch(sparse, mode=OFF), latent=latent).isfinite().all()


def test_image_model_takes_nabla(tiny_image_model, patch, sample):
    latent = {"samples": torch.zeros(1, 16, 8, 8)}
    dense = sample(tiny_image_model, latent=latent)
    full = sample(patch(tiny_image_model, cdf_threshold=1.0, tile="1x2x2"), latent=latent)
    assert (full - dense).abs().max() < TOLERANCE


def test_chosen_backend_is_the_one_that_runs(tiny, patch, sample, host):
    expected = sample(patch(tiny))
    for backend in ("reference", "gathered", "dense"):
        assert (sample(patch(tiny, backend=backend)) - expected).abs().max() < 1e-4
    choices = host.part("nodes.host.attention.choice").CHOICE
    reference = patch(tiny, backend="reference").model_options["transformer_options"][choices]
    gathered = patch(tiny, backend="gathered").model_options["transformer_options"][choices]
    assert reference.attend.__name__ == attend_reference.__name__
    assert gathered.attend.__name__ == attend_gathered.__name__


def test_backend_that_is_not_installed_is_refused_at_the_node(tiny, patch):
    with pytest.raises(ValueError, match=r"backend.*sage.*choose one of"):
        patch(tiny, backend="sage")


def test_another_packs_model_is_refused(patch):
    class Other:
        model = object()

    with pytest.raises(ValueError, match=r"Load Model \(Kandinsky 5\)"):
        patch(Other(), mode=AUTO)
    with pytest.raises(ValueError, match=r"Other|object has no patches"):
        patch(Other())


def test_inspector_draws_what_was_kept(run, tiny, prompts, patch, latent, sample):
    given = {"positive": prompts[0], "negative": prompts[1], "latent": latent, "seed": 7}
    given |= {"layer": 0, "head": 0, "step": 1, "steps": 3}
    everything = patch(tiny, cdf_threshold=1.0)
    density, block_map, *_ = run("K5_NablaInspector", model=everything, **given)
    cell = density[0, 100, 100]  # in the middle of the table
    assert (density[0, 60:100, 60:500] == cell).all()
    white = (block_map == 1).all(-1).sum()
    assert white > 0.9 * 512 * 512 * (1 - 1 / 64)

    # a window of one tile and P 0: a block attends to itself and to its best
    sparse = patch(tiny, cdf_threshold=0.0)
    density, block_map, made, attended = run("K5_NablaInspector", model=sparse, **given)
    assert (density[0, 100, 100] != cell).any()
    kept = block_map[0, 40:552, 40:552].unflatten(0, (8, 64)).unflatten(2, (8, 64))[:, 32, :, 32, 0]
    assert (kept.diagonal() == 1).all()
    assert (((kept == 1).sum(1) >= 1) & ((kept == 1).sum(1) <= 2)).all()
    # two frames of 2 x 2 tiles, grey: what the last tile keeps is bright, and it is outlined
    assert attended.shape == (2, 64, 64, 3)
    centres = attended[:, 16::32, 16::32, 2] > 0.5
    assert torch.equal(centres.flatten(), kept[7] == 1)
    assert (attended[1, 32, 32:] == torch.tensor([200, 60, 60]) / 255).all()
    again = sample(sparse, steps=3, cfg=tiny.model.info.settings.guidance_scale)
    assert torch.equal(made["samples"], again)


@pytest.mark.parametrize("wrong", [{"layer": 1}, {"head": 9}, {"step": 3}])
def test_inspector_names_what_there_is(run, tiny, prompts, patch, latent, wrong):
    given = {"positive": prompts[0], "negative": prompts[1], "latent": latent, "seed": 7}
    given |= {"layer": 0, "head": 0, "step": 1, "steps": 3}
    with pytest.raises(
        ValueError, match=rf"{next(iter(wrong))}.*(has 3 steps|1 layers and 1 heads)"
    ):
        run("K5_NablaInspector", model=patch(tiny), **(given | wrong))
    with pytest.raises(ValueError, match="tile: there are 2 x 2 x 2 tiles, found number 8"):
        run("K5_NablaInspector", model=patch(tiny), **given, tile=8)
    with pytest.raises(ValueError, match="attends densely"):
        run("K5_NablaInspector", model=patch(tiny, mode=OFF), **given)


def test_inspector_draws_on_the_decoded_picture(run, model, vae, prompts, patch):
    latent = run("K5_EmptyLatent", width=128, height=128, length=5, batch_size=1)[0]
    given = {"positive": prompts[0], "negative": prompts[1], "latent": latent, "seed": 7}
    given |= {"layer": 0, "head": 0, "step": 1, "steps": 2, "vae": vae}
    made, attended = run("K5_NablaInspector", model=patch(model, cdf_threshold=1.0), **given)[2:]
    frames = run("K5_Decode", vae=vae, latent=made, memory_budget_gb=0.0)[0]
    expected = frames[[0, 4]]
    outline = (attended - expected).abs().amax(-1) > 2 / 255
    assert attended.shape == (2, 128, 128, 3)
    assert 0 < outline.float().mean() < 0.05  # everything is kept: the picture and an outline


def test_guidance_in_one_call_equals_two_calls(run, clip, tiny, patch, sample, monkeypatch):
    texts = ("a red circle moves right", "a blue square moves left")
    prompts = [run("K5_TextEncode", clip=clip, text=text, task="t2v")[0] for text in texts]
    given = {"positive": prompts[0], "negative": prompts[1]}
    sparse = patch(tiny)
    together = sample(sparse, **given)
    monkeypatch.setattr(tiny.model, "memory_required", lambda *_args, **_named: 1e30)
    assert (sample(sparse, **given) - together).abs().max() < TOLERANCE
    assert (together - by_core(tiny, prompts, SPARSE)).abs().max() < 1e-4
