"""MagCache and its calibration on a MODEL."""

from __future__ import annotations

import json
from contextlib import contextmanager
from dataclasses import replace

import pytest
import torch

from kandinsky_core.attention import Nabla
from kandinsky_core.caching import (
    Calibration,
    MagCache,
    MagRatios,
    find_ratios,
    load_ratios,
    save_ratios,
)
from kandinsky_core.checkpoint import load_transformer
from kandinsky_core.family.settings import Release, find_settings
from kandinsky_core.flow import make_noise, timesteps
from kandinsky_core.flow import sample as core_sample
from kandinsky_core.guided_model import GuidedModel
from kandinsky_core.text import TextConditioning

STEPS = 10
TOLERANCE = 1e-4
FLAT = MagRatios((1.0,) * (STEPS - 1), (1.0,) * (STEPS - 1), "flat")
UNEVEN = MagRatios((1.0,) * (STEPS - 1), (0.7, 1.0, 0.9) * 3, "uneven")
RUNS_OF_FLAT = 4
"""Of 10 steps: the first 20 % run, then every third of those whose ratios are all 1."""


@pytest.fixture
def tiny(load_model, tiny_file):
    return load_model(tiny_file)


@pytest.fixture
def ratios_file(host):
    """Save ratios where the node looks for them; returns the name."""

    def save(ratios):
        folder = host.base / "models" / "kandinsky5"
        folder.mkdir(exist_ok=True)
        path = folder / f"{ratios.source}.json"
        save_ratios(path, ratios, {})
        return path.name

    return save


@pytest.fixture
def cached(run, ratios_file):
    """Run K5_MagCache with the reference's numbers."""

    def call(model, ratios=FLAT, **inputs):
        given = {"threshold": 0.12, "max_skips": 2, "retention": 0.2}
        name = ratios_file(ratios) if isinstance(ratios, MagRatios) else ratios
        return run("K5_MagCache", model=model, ratios=name, **(given | inputs))[0]

    return call


@contextmanager
def block_calls(model):
    """Batch sizes of the calls that ran the visual blocks."""
    calls = []
    block = model.model.diffusion_model.visual_transformer_blocks[0]
    handle = block.register_forward_hook(lambda _module, inputs, _out: calls.append(len(inputs[0])))
    try:
        yield calls
    finally:
        handle.remove()


def by_core(model, prompts, cache, nabla=None, steps=STEPS):
    """Return what the core makes of the same noise and prompts."""
    network, info = load_transformer(model.model.info.path, dtype=torch.float32)
    text = [
        TextConditioning(
            tokens, torch.ones(tokens.shape[:2], dtype=torch.bool), extra["pooled_output"]
        )
        for ((tokens, extra),) in prompts
    ]
    guided = GuidedModel(
        network,
        *text,
        scale=3.0,
        rope_scale=info.settings.rope_scale_for(64, 64),
        cache=cache,
        nabla=nabla,
    )
    cache.begin(steps)
    noise = make_noise((1, 16, 2, 8, 8), seed=7)
    *_, last = core_sample(guided, noise, timesteps(steps, info.settings.shift))
    return model.model.process_latent_out(last.latents)


@pytest.mark.parametrize("ratios", [FLAT, UNEVEN], ids=lambda ratios: ratios.source)
def test_the_node_gives_what_the_core_gives_in_every_sampler(
    tiny, prompts, cached, sample, ksample, ratios
):
    expected = by_core(tiny, prompts, MagCache(ratios))
    fast = cached(tiny, ratios)
    assert (sample(fast, steps=STEPS) - expected).abs().max() < TOLERANCE
    assert (ksample(fast, steps=STEPS) - expected).abs().max() < TOLERANCE
    assert (sample(tiny, steps=STEPS) - expected).abs().max() > 1e-3


def test_blocks_run_in_the_steps_that_the_algorithm_says(run, clip, tiny, cached, sample):
    fast = cached(tiny)
    with block_calls(tiny) as calls:
        sample(fast, steps=STEPS)
    assert calls == [1] * 2 * RUNS_OF_FLAT
    same_length = [
        run("K5_TextEncode", clip=clip, text=text, task="t2v")[0]
        for text in ("a red circle moves right", "a blue square moves left")
    ]
    given = {"positive": same_length[0], "negative": same_length[1]}
    with block_calls(tiny) as calls:
        sample(fast, steps=STEPS, **given)
    assert calls == [2] * RUNS_OF_FLAT
    with block_calls(tiny) as calls:
        sample(fast, steps=STEPS, cfg=1.0)
    assert calls == [1] * RUNS_OF_FLAT


def test_prompts_are_tracked_apart_although_the_host_batches_them(
    run, clip, tiny, cached, sample, monkeypatch
):
    texts = ("a red circle moves right", "a blue square moves left")
    positive, negative = (
        run("K5_TextEncode", clip=clip, text=text, task="t2v")[0] for text in texts
    )
    given = {"positive": positive, "negative": negative, "steps": STEPS}
    expected = by_core(tiny, (positive, negative), MagCache(UNEVEN))
    fast = cached(tiny, UNEVEN)
    with block_calls(tiny) as calls:
        together = sample(fast, **given)
    assert set(calls) == {2}
    monkeypatch.setattr(tiny.model, "memory_required", lambda *_args, **_named: 1e30)
    with block_calls(tiny) as calls:
        apart = sample(fast, **given)
    assert set(calls) == {1}
    assert (together - expected).abs().max() < TOLERANCE
    assert (apart - expected).abs().max() < TOLERANCE


def test_every_run_starts_anew_and_branches_do_not_share(tiny, cached, sample):
    plain = sample(tiny, steps=STEPS)
    fast = cached(tiny)
    first = sample(fast, steps=STEPS)
    assert torch.equal(sample(fast, steps=STEPS), first)
    sample(fast, steps=5)
    assert torch.equal(sample(fast, steps=STEPS), first)
    assert torch.equal(sample(tiny, steps=STEPS), plain)
    assert torch.equal(sample(cached(fast, threshold=0.0), steps=STEPS), plain)


def test_a_cancelled_run_leaves_nothing_behind(host, tiny, cached, sample):
    management = host.module("comfy.model_management")
    fast = cached(tiny)
    expected = sample(fast, steps=STEPS)
    calls = []

    def cancel_at_the_fourth(apply, arguments):
        calls.append(arguments)
        management.interrupt_current_processing(len(calls) == 4)
        return apply(arguments["input"], arguments["timestep"], **arguments["c"])

    cancelled = fast.clone()
    cancelled.set_model_unet_function_wrapper(cancel_at_the_fourth)
    with pytest.raises(management.InterruptProcessingException):
        sample(cancelled, steps=STEPS)
    assert torch.equal(sample(fast, steps=STEPS), expected)


def test_runs_that_ratios_do_not_describe_are_computed_in_full(
    host, run, clip, tiny, cached, prompts, sample, caplog
):
    fast = cached(tiny)
    source = {"samples": torch.ones(1, 16, 2, 8, 8)}
    other = run("K5_TextEncode", clip=clip, text="a blue square", task="t2v")[0]
    (combined,) = host.native.ConditioningCombine().combine(prompts[0], other)
    (ranged,) = host.native.ConditioningSetTimestepRange().set_range(prompts[0], 0.0, 0.6)
    for given, why in (
        ({"latent": source, "denoise": 0.5}, "part of a schedule"),
        ({"positive": combined}, "combined from several"),
        ({"positive": [*ranged]}, "some of the steps"),
    ):
        caplog.clear()
        out = sample(fast, steps=STEPS, **given)
        assert torch.equal(out, sample(tiny, steps=STEPS, **given))
        (line,) = [record.message for record in caplog.records if "in full" in record.message]
        assert why in line


@pytest.mark.parametrize(
    "sampler", ["heun", "heunpp2", "dpm_2", "dpmpp_sde", "seeds_2", "dpm_fast"]
)
def test_samplers_with_several_calls_per_step_are_left_alone(
    host, tiny, cached, prompts, latent, sampler, caplog
):
    def native(model):
        return host.native.KSampler().sample(
            model, 7, 6, 3.0, sampler, "simple", *prompts, latent, denoise=1.0
        )[0]["samples"]

    fast = native(cached(tiny, retention=0.0))
    assert torch.equal(fast, native(tiny))
    assert sum("in full" in record.message for record in caplog.records) == 1


@pytest.mark.parametrize("sampler", ["euler_ancestral", "dpmpp_2m", "uni_pc", "res_multistep"])
def test_samplers_with_one_call_per_step_are_sped_up(host, tiny, cached, prompts, latent, sampler):
    with block_calls(tiny) as calls:
        host.native.KSampler().sample(
            cached(tiny), 7, STEPS, 3.0, sampler, "simple", *prompts, latent, denoise=1.0
        )
    assert len(calls) == 2 * RUNS_OF_FLAT


def test_works_around_nabla(run, tiny, cached, prompts, sample):
    sparse = run(
        "K5_Nabla",
        model=cached(tiny),
        mode="on",
        cdf_threshold=0.3,
        window=False,
        window_t=1,
        window_h=1,
        window_w=1,
        min_blocks=0,
        dense_above=1.0,
        tile="1x2x2",
        backend="auto",
    )[0]
    expected = by_core(tiny, prompts, MagCache(FLAT), Nabla(0.3, (1, 2, 2), None))
    assert (sample(sparse, steps=STEPS) - expected).abs().max() < TOLERANCE


def test_native_cache_beside_it_still_works(host, tiny, cached, sample):
    node = host.extra("nodes_easycache").EasyCacheNode
    (both,) = node.execute(cached(tiny), 0.5, 0.15, 0.95, False).result
    assert sample(both, steps=16).isfinite().all()


def test_published_ratios_are_those_of_the_checkpoint_and_size(tiny, prompts, cached, sample):
    info, release = tiny.model.info, Release("video_lite", "t2v", 5, "sft")
    tiny.model.info = replace(info, release=release)
    try:
        fast = cached(tiny, "from checkpoint", threshold=0.3)
        out = sample(fast, steps=STEPS)
        tiny.model.info = replace(info, release=release._replace(stage="distilled"))
        with pytest.raises(ValueError, match="distilled"):
            cached(tiny, "from checkpoint")
    finally:
        tiny.model.info = info
    ratios = find_ratios(release, find_settings(release)[0])
    cache = MagCache(ratios, threshold=0.3)
    assert (out - by_core(tiny, prompts, cache)).abs().max() < TOLERANCE
    assert sum(each.skipped for each in cache.counts.values()) > 0


def test_uncalibrated_checkpoint_names_the_node_that_calibrates(model, cached):
    with pytest.raises(ValueError, match=r"nano t2v.*128x128.*Calibrate MagCache \(Kandinsky 5\)"):
        cached(model, "from checkpoint")


@pytest.fixture
def calibrate(run, prompts, latent):
    """Run K5_CalibrateMagCache on the small latent; returns name and LATENT."""

    def call(model, **inputs):
        given = {"positive": prompts[0], "negative": prompts[1], "latent": latent}
        given |= {"name": "measured", "seed": 7, "steps": STEPS, "cfg": 3.0, "shift": 0.0}
        return run("K5_CalibrateMagCache", model=model, **(given | inputs))

    return call


def test_calibration_measures_what_the_core_measures(
    host, tiny, cached, prompts, sample, calibrate
):
    name, made = calibrate(cached(tiny))
    assert name == "measured.json"
    path = host.base / "models" / "kandinsky5" / name
    ratios, measured_on = load_ratios(path)
    assert torch.equal(made["samples"], sample(tiny, steps=STEPS))
    core = Calibration()
    by_core(tiny, prompts, core)
    expected = core.ratios("")
    assert ratios.cond == pytest.approx(expected.cond, abs=2e-5)
    assert ratios.uncond == pytest.approx(expected.uncond, abs=2e-5)
    assert measured_on["steps"] == STEPS
    assert measured_on["size"] == [64, 64]
    json.dumps(measured_on)

    assert name in host.part("nodes.host").ratio_names()
    fast = cached(tiny, "from checkpoint", ratios_name=name, threshold=10.0)
    wanted = by_core(tiny, prompts, MagCache(ratios, threshold=10.0))
    assert (sample(fast, steps=STEPS) - wanted).abs().max() < TOLERANCE
    before = host.pack["K5_MagCache"].fingerprint_inputs(ratios_name=name)
    calibrate(tiny, steps=4, cfg=1.0)
    assert host.pack["K5_MagCache"].fingerprint_inputs(ratios_name=name) != before
    ratios, _ = load_ratios(path)
    assert len(ratios.cond) == 3
    assert ratios.uncond is None


def test_what_cannot_be_calibrated_is_refused(host, run, clip, tiny, prompts, calibrate):
    other = run("K5_TextEncode", clip=clip, text="a blue square", task="t2v")[0]
    (combined,) = host.native.ConditioningCombine().combine(prompts[0], other)
    with pytest.raises(ValueError, match="combined from several"):
        calibrate(tiny, positive=combined, name="refused")
    with pytest.raises(ValueError, match="at least 2"):
        calibrate(tiny, steps=1, name="refused")
    assert not (host.base / "models" / "kandinsky5" / "refused.json").exists()


@pytest.mark.parametrize(
    "name", ["../up", "a/b", "a\\b", "", ".hidden", "/etc/x", "x" * 200, "a\n"]
)
def test_names_that_are_not_plain_are_refused(tiny, cached, calibrate, name):
    with pytest.raises(ValueError, match=r"name: expected a plain file name"):
        calibrate(tiny, name=name)
    with pytest.raises(ValueError, match=r"ratios: expected a plain file name"):
        cached(tiny, name)


def test_missing_and_foreign_files_are_explained(host, tiny, cached):
    with pytest.raises(ValueError, match=r"no file 'absent\.json'.*Calibrate MagCache"):
        cached(tiny, "absent.json")
    folder = host.base / "models" / "kandinsky5"
    folder.mkdir(exist_ok=True)
    (folder / "junk.json").write_text("{}")
    with pytest.raises(ValueError, match=r"junk\.json is not a file of MagCache ratios"):
        cached(tiny, "junk.json")


def test_ratios_of_something_else_are_named_once(
    host, tiny, cached, ratios_file, sample, calibrate, latent, caplog
):
    def named():
        return [record.message for record in caplog.records if "was measured" in record.message]

    fast = cached(tiny, ratios_file(FLAT))  # says nothing of where it comes from
    sample(fast, steps=2)
    sample(fast, steps=2)
    (line,) = named()
    assert "MagCache: flat.json was measured on an unknown checkpoint, not on video_lite" in line

    caplog.clear()
    name, _ = calibrate(tiny, steps=2)
    fast = cached(tiny, "from checkpoint", ratios_name=name)
    sample(fast, steps=2)
    assert not named()
    image = {"samples": latent["samples"][:, :, :1]}
    sample(fast, steps=2, latent=image)
    (line,) = named()
    assert "was measured for t2v, not for t2i" in line

    caplog.clear()
    path = host.base / "models" / "kandinsky5" / name
    path.write_text(path.read_text().replace(" 64,", " 1024,").replace(" 64\n", " 1024\n"))
    info = tiny.model.info
    small = info.settings
    tiny.model.info = replace(
        info, settings=replace(small, larger=replace(small, sizes=((1024, 1024),)))
    )
    try:
        sample(cached(tiny, name), steps=2)
    finally:
        tiny.model.info = info
    (line,) = named()
    assert "was measured at 1024x1024, not at sizes around 512x768" in line


@pytest.mark.parametrize("unguided", [False, True])
def test_a_run_leaves_no_tensors(host, tiny, cached, sample, monkeypatch, unguided):
    caching, made = host.part("nodes.host.model.caching"), []

    def remember(*args, make=caching.MagCache, **options):
        made.append(make(*args, **options))
        return made[-1]

    monkeypatch.setattr(caching, "MagCache", remember)
    sample(cached(tiny), steps=STEPS, unguided_last_step=unguided)
    (cache,) = made
    assert cache.counts["uncond"].calls == STEPS - unguided
    assert all(track.residual is None for track in cache._tracks.values())
