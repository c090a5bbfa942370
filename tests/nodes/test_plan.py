"""K5_PlanMemory: what it reads off native objects, and what it says."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from kandinsky_core.family.config import DiTConfig
from kandinsky_core.planning.costs import count_parameters

WIDE = DiTConfig(512, 1024, 32, 1, 2, (16, 24, 24), text_dim=128, pooled_dim=128)
"""A stream that is much larger than latents, as in the family; two blocks, so that what stays
for all of them is told from the input of one."""


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


def test_guidance_follows_the_checkpoint_and_cfg(plan, model, monkeypatch):
    assert "16 steps with guidance" in plan(model).result[0]
    for inputs in ({"cfg": 1.0}, {"guidance": False}, {"guidance": False, "cfg": 3.0}):
        assert "guidance" not in plan(model, **inputs).result[0]
    info = model.model.info
    unguided = replace(info.settings, guidance_scale=1.0, larger=None)
    monkeypatch.setattr(model.model, "info", replace(info, settings=unguided))
    assert "guidance" not in plan(model).result[0]
    assert "16 steps with guidance" in plan(model, cfg=3.0).result[0]


def test_what_does_not_fit_is_answered_with_a_smaller_size_class(host, plan, model):
    module, part = host.part("kandinsky_core.planning.plan"), host.part("nodes.host")

    def needed(cells):
        latent = {"samples": torch.zeros(1, 16, 7, cells, cells)}
        settings = part.settings_for(model, latent)
        job = part.make_job(model, latent, settings, clip=None, vae=None, guided=True)
        return module.plan_job(job, "streamed").needed

    small, large = needed(16), needed(32)
    assert small < large
    report, fits = plan(model, length=25, memory_gb=(small + large) / 2 / 2**30).result
    assert fits is False
    assert report.endswith("25 frames of 128x128.")


def test_main_memory_is_judged_beside_a_device(host, plan, model, clip, vae):
    card = model.clone()
    card.load_device = torch.device("cuda")  # nothing runs there
    given = {"clip": clip, "vae": vae}
    module, part = host.part("kandinsky_core.planning.plan"), host.part("nodes.host")
    latent = {"samples": torch.zeros(1, 16, 5, 32, 32)}
    job = part.make_job(card, latent, card.model.info.settings, guided=True, **given)
    given["memory_gb"] = module.plan_job(job).needed / 2**30
    report, fits = plan(card, main_memory_gb=8.0, **given).result
    assert fits is True
    assert "one model at a time" in report
    report, fits = plan(card, main_memory_gb=0.001, **given).result
    assert fits is False
    assert "does not fit main memory: " in report
    assert "main memory" not in plan(model, main_memory_gb=0.001).result[0]


def test_weights_that_are_there_already_count_as_room_for_them(host, model, clip, monkeypatch):
    module = host.part("nodes.host.plan")
    free = module.free_main_memory
    module.comfy.model_management.unload_all_models()  # what earlier tests have loaded
    monkeypatch.setattr(module.comfy.model_management, "get_free_memory", lambda _device: 1000)

    class Process:
        held = 0

        def memory_info(self):
            return SimpleNamespace(rss=500 + self.held, shared=500)

    monkeypatch.setattr(module.psutil, "Process", Process)
    assert free(model, clip, None) == 1000
    monkeypatch.setattr(Process, "held", 300)
    assert free(model, clip, None) == 1300
    monkeypatch.setattr(Process, "held", 2**40)
    waiting = sum(p.model_size() - p.loaded_size() for p in (model, clip.patcher))
    assert free(model, clip, None) == 1000 + waiting


@pytest.fixture(scope="module")
def wide(save_tiny, load_model):
    return load_model(save_tiny("wide.safetensors", WIDE, "t2v"), "fp32")


@pytest.mark.parametrize("cached", [False, True], ids=["plain", "magcache"])
@pytest.mark.parametrize("together", [False, True], ids=["one by one", "both at once"])
def test_a_run_in_the_host_takes_what_was_planned(
    host, run, wide, clip, together, cached, peak_memory, monkeypatch
):
    part, stages = host.part("nodes.host"), host.part("kandinsky_core.planning.plan").plan_job
    texts = ("a red circle moves right", "a blue square moves left")
    prompts = [run("K5_TextEncode", clip=clip, text=text, task="t2v")[0] for text in texts]
    asked, count = [], wide.model.memory_required

    def required(shape, **named):
        asked.append((wide.model.cached_rows, count(shape, **named)))
        return asked[-1][1] if together else 1e30

    monkeypatch.setattr(wide.model, "memory_required", required)
    model = wide
    if cached:
        flat = host.part("kandinsky_core.caching").MagRatios((1.0,), (1.0,), "flat")
        numbers = {"threshold": 0.0, "max_skips": 2, "retention": 0.0}
        model = part.with_magcache(wide, lambda _size, _task: flat, **numbers)
    latent = {"samples": torch.zeros(1, 16, 2, 16, 32)}
    given = [each for prompt in prompts for each in (prompt[0][0], prompt[0][1]["pooled_output"])]
    with peak_memory(latent["samples"], *given, *wide.model.parameters()) as memory:
        run(
            "K5_Sampler",
            model=model,
            positive=prompts[0],
            negative=prompts[1],
            latent=latent,
            seed=0,
            cfg=3.0,
            steps=2,
            shift=0.0,
            denoise=1.0,
        )
    settings = part.settings_for(model, latent)
    job = part.make_job(model, latent, settings, clip=clip, vae=None, guided=True)
    name = "sampling, both prompts at once" if together else "sampling"
    planned = next(stage.tensors for stage in stages(job).stages if stage.name == name)
    assert planned == pytest.approx(memory.peak, rel=0.15)
    # before the run the host counts both prompts in a call, then one, residuals included
    stream = job.tokens * WIDE.model_dim * 4
    (rows, most), (_, least) = asked[:2]
    assert rows == (2 if cached else 0)
    assert wide.model.cached_rows == 0
    plain = [count((batch, 16, 2, 16, 32)) for batch in (2, 1)]
    assert [most - plain[0], least - plain[1]] == ([4 * stream, 3 * stream] if cached else [0, 0])


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
        return make_job(model, latent, model.model.info.settings, guided=True, **given)

    planned = job(load_model(weight_dtype="bf16"), clip=clip, vae=vae)
    plan_job = host.part("kandinsky_core.planning.plan").plan_job
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
