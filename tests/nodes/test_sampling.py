"""Our sampler, the native ones and the core's agree; native samplers' options work."""

from __future__ import annotations

import pytest

STEPS = [4, 8, 16, 20, 28, 30, 50]
TOLERANCE = 1e-4


def ksampler(host, model, prompts, latent, *, steps, cfg=3.0, seed=7, denoise=1.0):
    """Native KSampler, euler and simple."""
    (out,) = host.native.KSampler().sample(
        model, seed, steps, cfg, "euler", "simple", *prompts, latent, denoise=denoise
    )
    return out["samples"]


@pytest.mark.parametrize("steps", STEPS)
def test_ksampler_equals_our_sampler(host, run, nano, prompts, latent, steps):
    ours = run(
        "K5_Sampler",
        model=nano.model,
        positive=prompts[0],
        negative=prompts[1],
        latent=latent,
        seed=7,
        cfg=3.0,
        steps=steps,
        shift=0.0,
        denoise=1.0,
    )[0]["samples"]
    native = ksampler(host, nano.model, prompts, latent, steps=steps)
    assert ours.std() > 0.1
    assert (ours - native).abs().max() < TOLERANCE
