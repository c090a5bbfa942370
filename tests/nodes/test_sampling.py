"""Our sampler, the native ones and the core's agree; native samplers' options work."""

from __future__ import annotations

import pytest
import torch

from kandinsky_core.checkpoint import load_transformer
from kandinsky_core.flow import make_noise, timesteps
from kandinsky_core.flow import sample as core_sample
from kandinsky_core.guided_model import GuidedModel
from kandinsky_core.text import TextConditioning

STEPS = [4, 8, 16, 20, 28, 30, 50]
TOLERANCE = 1e-4


def to_text(conditioning):
    tokens, extra = conditioning[0]
    mask = torch.ones(tokens.shape[:2], dtype=torch.bool)
    return TextConditioning(tokens, mask, extra["pooled_output"])


@pytest.mark.parametrize("steps", STEPS)
def test_four_samplers_give_the_same_latents(
    host, run, model, prompts, latent, sample, ksample, steps
):
    ours = sample(model, steps=steps)
    assert ours.std() > 0.1
    assert (ours - ksample(model, steps=steps)).abs().max() < TOLERANCE

    (sigmas,) = run("K5_Schedule", model=model, steps=steps, shift=0.0, denoise=1.0)
    custom = host.extra("nodes_custom_sampler")
    (sampler,) = custom.KSamplerSelect.execute(sampler_name="euler").result
    native = custom.SamplerCustom.execute(
        model, True, 7, 3.0, *prompts, sampler, sigmas, latent
    ).result[0]["samples"]
    assert (ours - native).abs().max() < TOLERANCE

    info = model.model.info
    network, _ = load_transformer(info.path, dtype=torch.float32)
    guided = GuidedModel(network, *map(to_text, prompts), scale=3.0)
    times = timesteps(steps, info.settings.shift)
    *_, last = core_sample(guided, make_noise(latent["samples"].shape, seed=7), times)
    in_vae_space = model.model.process_latent_out(last.latents)
    assert (ours - in_vae_space).abs().max() < TOLERANCE


def test_defaults_are_those_of_the_checkpoint(run, model, sample):
    settings = model.model.info.settings
    height, width = settings.default_size
    assert run("K5_Settings", model=model)[:7] == (
        settings.num_steps,
        settings.guidance_scale,
        settings.shift,
        settings.fps,
        width,
        height,
        settings.num_frames,
    )
    given = sample(
        model, steps=settings.num_steps, cfg=settings.guidance_scale, shift=settings.shift
    )
    assert torch.equal(sample(model, steps=0, cfg=0.0), given)


def test_denoise_below_one_starts_from_the_latent(model, sample, ksample):
    source = {"samples": torch.full((1, 16, 2, 8, 8), 10.0)}
    distances = []
    for denoise in (0.25, 0.5, 0.8):
        ours = sample(model, latent=source, denoise=denoise)
        assert (ours - ksample(model, latent=source, denoise=denoise)).abs().max() < TOLERANCE
        distances.append((ours - source["samples"]).abs().mean())
    assert 0 < distances[0] < distances[1] < distances[2]


@pytest.mark.parametrize(("steps", "denoise", "total"), [(7, 0.8, 8), (5, 0.3, 16), (4, 1.0, 4)])
def test_denoise_takes_the_last_of_more_steps_rounded_down(run, model, steps, denoise, total):
    # 7 / 0.8 = 8.75 and 5 / 0.3 = 16.7, where rounding would give 9 and 17
    (sigmas,) = run("K5_Schedule", model=model, steps=steps, shift=3.0, denoise=denoise)
    times = [1 - index / total for index in range(total - steps, total + 1)]
    assert sigmas.tolist() == pytest.approx([3 * t / (1 + 2 * t) for t in times], abs=1e-6)


def test_noise_mask_keeps_what_is_outside(host, model, sample, ksample):
    source = {"samples": sample(model)}
    mask = torch.zeros(1, 64, 64)
    mask[:, :, 32:] = 1
    (masked,) = host.native.SetLatentNoiseMask().set_mask(source, mask)
    ours = sample(model, latent=masked)
    assert (ours - ksample(model, latent=masked)).abs().max() < TOLERANCE
    change = (ours - source["samples"]).abs()
    assert change[..., :4].max() < 1e-5
    assert change[..., 4:].max() > 1e-2


def test_batch_equals_singles(run, model, sample, ksample):
    (batch,) = run("K5_EmptyLatent", width=64, height=64, length=5, batch_size=3)
    together = sample(model, latent=batch)
    one_by_one = [
        sample(model, latent={"samples": batch["samples"][:1], "batch_index": [i]})
        for i in range(3)
    ]
    assert (together - torch.cat(one_by_one)).abs().max() < TOLERANCE
    assert (together - ksample(model, latent=batch)).abs().max() < TOLERANCE


def test_native_shift_node_is_followed(host, model, sample, ksample):
    shifted = host.extra("nodes_model_advanced").ModelSamplingSD3().patch(model, 7.0)[0]
    ours = sample(shifted)
    assert (ours - ksample(shifted)).abs().max() < TOLERANCE
    assert (ours - sample(model)).abs().max() > 1e-2
    assert torch.equal(ours, sample(model, shift=7.0))


@pytest.mark.parametrize(
    ("node", "values", "named"),
    [
        ("ModelSamplingFlux", (1.15, 0.5, 64, 64), r"that of ModelSamplingFlux; take"),
        ("ModelSamplingAuraFlow", (1.73,), r"that of ModelSamplingAuraFlow \(times up to 1\);"),
        ("ModelSamplingDiscrete", ("v_prediction", False), r"that of ModelSamplingDiscrete;"),
        ("ModelSamplingContinuousEDM", ("edm", 120.0, 0.002), r"that of ModelSamplingContinuous"),
        ("ModelSamplingStableCascade", (2.0,), r"that of StableCascadeSampling;"),
    ],
)
@pytest.mark.parametrize("shift", [0.0, 5.0])
def test_schedules_of_other_families_are_refused_by_name(
    host, model, sample, node, values, named, shift
):
    chosen = getattr(host.extra("nodes_model_advanced"), node)()
    patched = getattr(chosen, chosen.FUNCTION)(model, *values)[0]
    with pytest.raises(ValueError, match="model: expected no schedule or .*" + named):
        sample(patched, shift=shift)


def test_cancel_leaves_a_model_that_works(host, model, sample):
    management = host.module("comfy.model_management")
    expected = sample(model)
    calls = []

    def cancel_at_the_third(apply, arguments):
        calls.append(arguments)
        management.interrupt_current_processing(len(calls) == 3)
        return apply(arguments["input"], arguments["timestep"], **arguments["c"])

    cancelled = model.clone()
    cancelled.set_model_unet_function_wrapper(cancel_at_the_third)
    with pytest.raises(management.InterruptProcessingException):
        sample(cancelled)
    assert len(calls) == 3
    assert torch.equal(sample(model), expected)


@pytest.mark.parametrize("shape", [(1, 16, 1, 8, 8), (1, 16, 8, 8)])
def test_one_frame_is_an_image(model, sample, shape):
    assert sample(model, latent={"samples": torch.zeros(shape)}).shape == (1, 16, 1, 8, 8)


def test_image_model_samples_native_image_latents(run, tiny_image_model, sample, ksample):
    size = {"width": 64, "height": 48, "length": 1, "batch_size": 2}
    (latent,) = run("K5_EmptyLatent", **size, model=tiny_image_model)
    assert latent["samples"].shape == (2, 16, 6, 8)
    ours = sample(tiny_image_model, latent=latent)
    assert ours.shape == (2, 16, 6, 8)
    assert (ours - ksample(tiny_image_model, latent=latent)).abs().max() < TOLERANCE
