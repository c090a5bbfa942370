"""Partial loading, as low-VRAM modes do it, gives what full loading gives, whatever is patched."""

from __future__ import annotations

import pytest
import torch

from kandinsky_core.caching import MagRatios, save_ratios

STEPS = 6
SHARE = 4
"""The budget is the model's size over this."""


@pytest.fixture
def partially(host, monkeypatch):
    """Let whatever samples next load a part of its model only."""

    def begin():
        patcher = host.module("comfy.model_patcher").ModelPatcher
        load = patcher.partially_load

        def load_some(self, device_to, extra_memory=0, force_patch_weights=False):
            assert extra_memory > self.model_size()  # what the host asks for is all of it
            budget = self.model_size() // SHARE
            return load(
                self, device_to, extra_memory=budget, force_patch_weights=force_patch_weights
            )

        monkeypatch.setattr(patcher, "partially_load", load_some)

    return begin


@pytest.fixture
def with_nabla(run):
    def patch(model):
        return run(
            "K5_Nabla",
            model=model,
            mode="on",
            cdf_threshold=0.3,
            window=True,
            window_t=1,
            window_h=1,
            window_w=1,
            min_blocks=0,
            dense_above=1.0,
            tile="1x2x2",
            backend="auto",
        )[0]

    return patch


@pytest.fixture
def with_magcache(host, run):
    def patch(model):
        folder = host.base / "models" / "kandinsky5"
        folder.mkdir(exist_ok=True)
        save_ratios(
            folder / "even.json",
            MagRatios((1.0,) * (STEPS - 1), (1.0,) * (STEPS - 1), "even"),
            {},
        )
        given = {"threshold": 0.12, "max_skips": 2, "retention": 0.2}
        return run("K5_MagCache", model=model, ratios="even.json", **given)[0]

    return patch


@pytest.fixture
def with_first_frame(run, prompts, vae):
    outputs = run(
        "K5_ImageToVideo",
        positive=prompts[0],
        negative=prompts[1],
        vae=vae,
        image=torch.rand(1, 64, 64, 3, generator=torch.Generator().manual_seed(0)),
        width=64,
        height=64,
        length=5,
        batch_size=1,
    )
    return dict(zip(("positive", "negative", "latent"), outputs, strict=True))


CASES = {
    "plain": ((), False),
    "nabla": (("nabla",), False),
    "magcache": (("magcache",), False),
    "first frame": ((), True),
    "all": (("nabla", "magcache"), True),
}


@pytest.mark.parametrize("case", CASES)
def test_sampling_is_the_same_partially_loaded(
    case, load_model, sample, partially, with_nabla, with_magcache, with_first_frame
):
    patches, from_image = CASES[case]
    given = with_first_frame if from_image else {}

    def patched():
        model = load_model()
        for name in patches:
            model = {"nabla": with_nabla, "magcache": with_magcache}[name](model)
        return model

    whole = patched()
    expected = sample(whole, steps=STEPS, **given)
    assert not whole.model.model_lowvram
    partially()
    part = patched()
    out = sample(part, steps=STEPS, **given)
    assert part.model.model_lowvram
    assert 0 < part.loaded_size() < part.model_size() / 2
    assert torch.equal(out, expected)


def test_text_is_the_same_partially_loaded(host, run, clip, partially):
    tokens = run("K5_TextEncode", clip=clip, text="a red circle", task="t2v")[0][0][0]
    host.module("comfy.model_management").unload_all_models()
    partially()
    again = run("K5_TextEncode", clip=clip, text="a red circle", task="t2v")[0][0][0]
    assert clip.patcher.model.model_lowvram
    assert torch.equal(again, tokens)


def test_every_layer_of_a_divided_model_can_be_left_behind(model, clip):
    """The host casts weights that stay behind only in layers of its own."""
    for patcher in (model, clip.patcher):
        for name, module in patcher.model.named_modules():
            if next(module.parameters(recurse=False), None) is not None:
                assert hasattr(module, "comfy_cast_weights"), name


def test_the_vae_is_never_divided(host, run, vae, monkeypatch):
    """Its layers are torch's own."""
    management, seen = host.module("comfy.model_management"), []
    load = management.load_models_gpu

    def watch(models, *args, force_full_load=False, **named):
        seen.append(force_full_load)
        return load(models, *args, force_full_load=force_full_load, **named)

    monkeypatch.setattr(management, "load_models_gpu", watch)
    latents = {"samples": torch.zeros(1, 16, 1, 8, 8)}
    run("K5_Decode", vae=vae, latent=latents, memory_budget_gb=0.0)
    host.native.VAEDecode().decode(vae, latents)
    host.native.VAEEncode().encode(vae, torch.zeros(1, 64, 64, 3))
    assert seen == [True] * 3
