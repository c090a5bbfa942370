"""Given frames at both ends, clips re-made, and a last step without guidance."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from kandinsky_core.checkpoint import load_transformer
from kandinsky_core.flow import make_noise, timesteps
from kandinsky_core.flow import sample as core_sample
from kandinsky_core.generate import GenerateRequest, generate
from kandinsky_core.guided_model import GuidedModel
from kandinsky_core.pipeline import load_pipeline
from kandinsky_core.text import TextConditioning

SIZE = {"width": 64, "height": 64, "batch_size": 1}


def clip_of(frames, seed=0):
    return torch.rand(frames, 64, 64, 3, generator=torch.Generator().manual_seed(seed))


@pytest.fixture
def ends(prompts, vae):
    """Return what both nodes take."""
    return {"positive": prompts[0], "negative": prompts[1], "vae": vae}


@pytest.fixture
def extended(run, ends):
    """Return a clip of 9 frames handed on with the last 5."""
    *outputs, before = run("K5_ExtendVideo", **ends, frames=clip_of(9), overlap=5, length=13)
    return dict(zip(("positive", "negative", "latent"), outputs, strict=True)), before


@pytest.fixture
def between(run, ends):
    """Return a clip from one image to another."""
    outputs = run(
        "K5_FirstLastFrame", **ends, first=clip_of(1), last=clip_of(1, 1), length=9, **SIZE
    )
    return dict(zip(("positive", "negative", "latent"), outputs, strict=True))


def test_extension_starts_with_the_last_frames(model, vae, extended, sample, ksample):
    given, before = extended
    assert torch.equal(before, clip_of(9)[:4])
    start = vae.encode(clip_of(9)[4:])
    assert start.shape[2] == 2
    ours = sample(model, **given)
    assert ours.shape[2] == 4
    assert (ours[:, :, :2] - start).abs().max() < 1e-5
    assert (ours - ksample(model, **given)).abs().max() < 1e-4
    assert ours[:, :, 2:].std() > 0.1


def test_clip_ends_in_the_last_frame(model, vae, between, sample, ksample):
    ours = sample(model, **between)
    first = vae.encode(clip_of(1))
    last = vae.encode(clip_of(1, 1).expand(5, -1, -1, -1))[:, :, 1:]
    assert (ours[:, :, :1] - first).abs().max() < 1e-5
    assert (ours[:, :, 2:] - last).abs().max() < 1e-5
    assert (ours - ksample(model, **between)).abs().max() < 1e-4


def test_both_are_what_the_core_makes(run, ends, model, sample):
    clip = (clip_of(9) * 255).byte()
    image, last = (clip_of(1, seed).mul(255).byte() for seed in (1, 2))
    request = GenerateRequest(
        "a red circle moves right",
        task="i2v",
        negative_prompt="",
        num_steps=4,
        guidance_scale=3.0,
        seed=7,
    )
    pipeline = load_pipeline()
    *extended, _ = run("K5_ExtendVideo", **ends, frames=clip / 255, overlap=5, length=13)
    between = run("K5_FirstLastFrame", **ends, first=image / 255, last=last / 255, length=9, **SIZE)
    for outputs, given in (
        (extended, {"clip": clip.numpy(), "overlap": 5, "num_frames": 13}),
        (
            between,
            {"image": image[0].numpy(), "last_frame": last[0].numpy(), "num_frames": 9}
            | {"height": 64, "width": 64},
        ),
    ):
        ours = sample(model, **dict(zip(("positive", "negative", "latent"), outputs, strict=True)))
        theirs = generate(pipeline, replace(request, **given)).latents
        assert (ours - theirs).abs().max() < 1e-4


@pytest.mark.parametrize(("which", "masks"), [("extended", [1, 1, 0, 0]), ("between", [1, 0, 1])])
def test_network_is_told_which_frames_are_given(model, request, sample, monkeypatch, which, masks):
    given = request.getfixturevalue(which)
    given = given[0] if which == "extended" else given
    seen = []
    embeddings = model.model.diffusion_model.visual_embeddings
    embed = embeddings.forward
    monkeypatch.setattr(embeddings, "forward", lambda x: (seen.append(x.clone()), embed(x))[1])
    sample(model, **given)
    for x in seen:
        _, condition, mask = x.split([16, 16, 1], dim=1)
        assert not condition.any()
        assert mask.amin(dim=(0, 1, 3, 4)).tolist() == mask.amax(dim=(0, 1, 3, 4)).tolist() == masks


def test_both_nodes_are_marked_experimental(host):
    for node_id in ("K5_ExtendVideo", "K5_FirstLastFrame"):
        assert host.pack[node_id].define_schema().is_experimental


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"overlap": 4}, "overlap: .* nearest that fit: 1 and 5"),
        ({"overlap": 9}, "overlap: 9 frames are to be repeated and the clip has 9"),
        ({"length": 5}, "length: 5 frames leave nothing"),
        ({"length": 14}, "length: .* nearest that fit: 13 and 17"),
        (
            {"frames": torch.zeros(9, 64, 70, 3)},
            r"frames: size 64x70 .* nearest that fit: 64 and 80\. Put Fit Image \(Kandinsky 5\)",
        ),
    ],
)
def test_impossible_extensions(run, ends, wrong, message):
    given = {"frames": clip_of(9), "overlap": 5, "length": 13} | wrong
    with pytest.raises(ValueError, match=message):
        run("K5_ExtendVideo", **ends, **given)


def test_impossible_pairs_of_images(run, ends):
    given = {"first": clip_of(1), "last": clip_of(1), **SIZE}
    with pytest.raises(ValueError, match="length: 5 frames leave nothing"):
        run("K5_FirstLastFrame", **ends, **given, length=5)
    with pytest.raises(ValueError, match="last: expected 1 image or 1"):
        run("K5_FirstLastFrame", **ends, **(given | {"last": clip_of(2)}), length=9)


def test_given_frames_that_fill_the_latent(model, extended, sample, latent):
    given, _ = extended
    with pytest.raises(ValueError, match="2 latent frames are given and the clip has 2"):
        sample(model, **(given | {"latent": latent}))


def test_encoded_clip_is_kept_the_more_the_lower_denoise(host, model, vae, sample, ksample):
    (source,) = host.native.VAEEncode().encode(vae, clip_of(5))
    distances = []
    for denoise in (0.25, 0.8):  # 16 and 5 steps, which divide the native table
        ours = sample(model, latent=source, denoise=denoise)
        assert (ours - ksample(model, latent=source, denoise=denoise)).abs().max() < 1e-4
        distances.append((ours - source["samples"]).abs().mean())
    assert 0 < distances[0] < distances[1]


def test_masked_part_of_an_encoded_clip_is_made_anew(host, model, vae, sample, ksample):
    (source,) = host.native.VAEEncode().encode(vae, clip_of(5))
    mask = torch.zeros(1, 64, 64)
    mask[:, 32:] = 1
    (masked,) = host.native.SetLatentNoiseMask().set_mask(source, mask)
    for denoise in (1.0, 0.6):
        ours = sample(model, latent=masked, denoise=denoise)
        assert (ours - ksample(model, latent=masked, denoise=denoise)).abs().max() < 1e-4
        change = (ours - source["samples"]).abs()
        assert change[..., :4, :].max() < 1e-5
        assert change[..., 4:, :].max() > 1e-2


def test_last_step_without_guidance_is_the_cores(model, prompts, latent, sample):
    calls = []
    network = model.model.diffusion_model
    handle = network.out_layer.register_forward_hook(lambda *_: calls.append(1))
    try:
        guided = sample(model)
        ours = sample(model, unguided_last_step=True)
    finally:
        handle.remove()
    assert len(calls) == 8 + 7
    assert (ours - guided).abs().max() > 1e-3

    texts = [
        TextConditioning(
            tokens, torch.ones(tokens.shape[:2], dtype=torch.bool), extra["pooled_output"]
        )
        for ((tokens, extra),) in prompts
    ]
    info = model.model.info
    times = timesteps(4, info.settings.shift)
    network, _ = load_transformer(info.path, dtype=torch.float32)
    velocity = GuidedModel(network, *texts, scale=3.0, unguided_from=times[-2].item())
    *_, last = core_sample(velocity, make_noise(latent["samples"].shape, seed=7), times)
    assert (ours - model.model.process_latent_out(last.latents)).abs().max() < 1e-4


def test_normalising_can_be_switched_off(run, model):
    latent = {"samples": torch.randn(1, 16, 7, 8, 8)}
    (out,) = run("K5_NormalizeFirstFrames", model=model, latent=latent, enabled=False)
    assert torch.equal(out["samples"], latent["samples"])
