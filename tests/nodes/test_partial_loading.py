"""Partial loading, as low-VRAM modes do it, gives what full loading gives, whatever is patched."""

from __future__ import annotations

import pytest
import torch

from kandinsky_core.caching import MagRatios, save_ratios

STEPS = 6


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


def clip_of(frames, seed=0):
    return torch.rand(frames, 64, 64, 3, generator=torch.Generator().manual_seed(seed))


@pytest.fixture
def begin(host, run, prompts, vae):
    """Return what a sampler takes for a clip that begins with something given."""
    size = {"width": 64, "height": 64, "batch_size": 1}
    ends = {"positive": prompts[0], "negative": prompts[1], "vae": vae}
    nodes = {
        "first frame": ("K5_ImageToVideo", {"image": clip_of(1), "length": 5, **size}),
        "both ends": (
            "K5_FirstLastFrame",
            {"first": clip_of(1), "last": clip_of(1, 1), "length": 9, **size},
        ),
        "extended": ("K5_ExtendVideo", {"frames": clip_of(9), "overlap": 5, "length": 13}),
    }

    def prepare(kind):
        if kind == "noise":
            return {}
        if kind in nodes:
            node_id, given = nodes[kind]
            outputs = run(node_id, **ends, **given)
            return dict(zip(("positive", "negative", "latent"), outputs, strict=False))
        (source,) = host.native.VAEEncode().encode(vae, clip_of(5))
        if kind == "masked clip":
            mask = torch.zeros(1, 64, 64)
            mask[:, 32:] = 1
            (source,) = host.native.SetLatentNoiseMask().set_mask(source, mask)
        return {"latent": source, "denoise": 0.6}

    return prepare


CASES = {
    "plain": ((), "noise"),
    "nabla": (("nabla",), "noise"),
    "magcache": (("magcache",), "noise"),
    "first frame": ((), "first frame"),
    "first frame, nabla, magcache": (("nabla", "magcache"), "first frame"),
    "both ends": ((), "both ends"),
    "extended": ((), "extended"),
    "clip": ((), "clip"),
    "masked clip": ((), "masked clip"),
}


@pytest.mark.parametrize("case", CASES)
def test_sampling_is_the_same_partially_loaded(
    case, load_model, sample, partially, with_nabla, with_magcache, begin
):
    patches, kind = CASES[case]
    given = begin(kind)

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
    partially.check(part)
    assert part.loaded_size() > 0
    assert torch.equal(out, expected)


def test_native_sampling_is_the_same_partially_loaded(load_model, ksample, partially):
    expected = ksample(load_model())
    partially()
    part = load_model()
    assert torch.equal(ksample(part), expected)
    partially.check(part)


def test_a_weight_left_behind_is_of_no_use_past_the_hosts_cast(load_model, sample, partially):
    """Else the tests here would say nothing."""
    partially()
    model = load_model()
    sample(model, steps=1)
    layer = next(
        module
        for module in model.model.diffusion_model.modules()
        if getattr(module, "weight", None) is not None and module.weight.is_meta
    )
    layer.comfy_cast_weights = False
    with pytest.raises(RuntimeError, match="meta"):
        sample(model, steps=1)


def test_text_is_the_same_partially_loaded(run, clip, partially):
    tokens = run("K5_TextEncode", clip=clip, text="a red circle", task="t2v")[0][0][0]
    partially()
    again = run("K5_TextEncode", clip=clip, text="a red circle", task="t2v")[0][0][0]
    partially.check(clip.patcher)
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
