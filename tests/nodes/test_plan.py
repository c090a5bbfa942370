"""K5_PlanMemory: what it reads off native objects, and what it says."""

from __future__ import annotations

import pytest
import torch

from kandinsky_core.costs import count_parameters


@pytest.fixture
def plan(host):
    """Run the node; returns its whole output."""

    def call(model, **inputs):
        given = {"width": 256, "height": 256, "length": 17, "guidance": True, "memory_gb": 1.0}
        return host.pack["K5_PlanMemory"].execute(model=model, **(given | inputs))

    return call


def test_a_small_job_fits_and_the_node_shows_it(plan, model):
    output = plan(model)
    report, fits = output.result
    assert fits is True
    assert "t2v: 256x256, 17 frames: 1,280 tokens" in report
    assert "fits 1.0 GiB with all models resident" in report
    assert output.ui.as_dict()["text"] == (report,)


def test_a_latent_goes_before_the_size(plan, model, latent):
    report, _ = plan(model, latent=latent).result
    assert "64x64, 5 frames: 32 tokens" in report


def test_too_little_memory_says_what_would_fit(plan, model, caplog):
    report, fits = plan(model, length=121, memory_gb=0.05).result
    assert fits is False
    assert "does not fit 0.05 GiB: " in report
    assert "what fits: " in report
    assert sum("this job does not fit" in line for line in caplog.messages) == 1


def test_weights_and_patches_are_those_of_the_objects(host, model, load_model, clip, vae):
    make_job = host.part("nodes.host").make_job
    latent = {"samples": torch.zeros(2, 16, 5, 16, 16)}

    def job(model, **parts):
        given = {"clip": None, "vae": None} | parts
        return make_job(model, latent, guided=True, **given)

    planned = job(load_model(weight_dtype="bf16"), clip=clip, vae=vae)
    plan_job = host.part("kandinsky_core.plan").plan_job
    sampling = next(s for s in plan_job(planned).stages if s.name == "sampling")
    assert sampling.weights == 2 * count_parameters(model.model.info.config)
    assert planned.text.weights == clip.patcher.model_size()
    assert planned.vae_dtype == vae.vae_dtype
    assert (planned.batch, planned.latent_thw) == (2, (5, 16, 16))
    assert planned.nabla is None
    sparse = host.pack["K5_Nabla"].execute(
        model=model,
        mode="on",
        cdf_threshold=0.9,
        window=True,
        window_t=1,
        window_h=1,
        window_w=1,
        min_blocks=0,
        dense_above=1.0,
        tile="1x2x2",
        backend="auto",
    )
    assert job(sparse.result[0]).nabla.tile_thw == (1, 2, 2)


def test_an_image_model_plans_one_frame(plan, tiny_image_model):
    report, _ = plan(tiny_image_model, length=121).result
    assert "t2i: 256x256: 256 tokens" in report


def test_free_memory_is_the_default(host, plan, model, monkeypatch):
    management = host.module("comfy.model_management")
    monkeypatch.setattr(management, "get_free_memory", lambda *_args: 3 << 30)
    assert "fits 3.0 GiB" in plan(model, memory_gb=0.0).result[0]


def test_parts_of_other_models_are_refused(plan, model):
    with pytest.raises(ValueError, match=r"vae: expected one from Load VAE"):
        plan(model, vae=object())
