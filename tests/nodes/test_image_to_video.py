"""The first frame of image to video: in place at every step, whatever sampler runs."""

from __future__ import annotations

import pytest
import torch

FIRST_FRAME = "k5_first_frame"


@pytest.fixture
def image():
    """Return a picture of another aspect than the clip."""
    return torch.rand(1, 90, 70, 3, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def prepared(run, prompts, vae, image):
    """Return the outputs of the node."""

    def call(batch_size=1, image=image):
        return run(
            "K5_ImageToVideo",
            positive=prompts[0],
            negative=prompts[1],
            vae=vae,
            image=image,
            width=64,
            height=64,
            length=5,
            batch_size=batch_size,
        )

    return call


def inputs(outputs):
    return dict(zip(("positive", "negative", "latent"), outputs, strict=True))


def test_every_sampler_lands_on_the_image(model, prepared, sample, ksample):
    given = inputs(prepared())
    frame = given["positive"][0][1][FIRST_FRAME]
    ours = sample(model, **given)
    assert (ours[:, :, :1] - frame).abs().max() < 1e-5
    assert (ours - ksample(model, **given)).abs().max() < 1e-4
    assert (ours[:, :, 1:] - frame).abs().mean() > 0.01


def test_the_frame_changes_the_rest_of_the_clip(model, prepared, sample):
    given = inputs(prepared())
    other = inputs(prepared(image=torch.zeros(1, 64, 64, 3)))
    difference = sample(model, **given)[:, :, 1:] - sample(model, **other)[:, :, 1:]
    assert difference.abs().max() > 1e-3


def test_network_sees_frame_zero_condition_and_mask(model, prepared, sample, monkeypatch):
    seen = []
    network = model.model.diffusion_model
    embed = network.visual_embeddings.forward
    monkeypatch.setattr(
        network.visual_embeddings, "forward", lambda x: (seen.append(x.clone()), embed(x))[1]
    )
    given = inputs(prepared())
    sample(model, **given)
    frame = model.model.process_latent_in(given["positive"][0][1][FIRST_FRAME])
    assert len(seen) == 8  # four steps, prompt and negative prompt
    for x in seen:
        noisy, condition, mask = x.split([16, 16, 1], dim=1)
        assert torch.allclose(noisy[:, :, :1], frame)
        assert not condition.any()
        assert mask[:, :, 0].eq(1).all()
        assert not mask[:, :, 1:].any()


def test_batch_of_images_starts_a_clip_each(model, prepared, sample):
    images = torch.rand(2, 64, 64, 3, generator=torch.Generator().manual_seed(1))
    given = inputs(prepared(batch_size=2, image=images))
    frames = given["positive"][0][1][FIRST_FRAME]
    out = sample(model, **given)
    assert frames.shape[0] == 2
    assert (out[:, :, :1] - frames).abs().max() < 1e-5


def test_image_is_resized_to_fill_and_cut(host):
    fill_size = host.part("nodes.convert").fill_size
    wide = torch.linspace(0, 1, 200).repeat(100, 1)[None, ..., None].expand(-1, -1, -1, 3)
    out = fill_size(wide, 64, 64)
    assert out.shape == (1, 64, 64, 3)
    # the middle half of the gradient is left
    assert out[0, 32, 0, 0] == pytest.approx(0.25, abs=0.02)
    assert out[0, 32, -1, 0] == pytest.approx(0.75, abs=0.02)


def test_normalising_touches_the_first_four_latent_frames_only(run, model):
    latent = {"samples": torch.randn(1, 16, 7, 8, 8)}
    (out,) = run("K5_NormalizeFirstFrames", model=model, latent=latent)
    change = (out["samples"] - latent["samples"]).abs().amax(dim=(0, 1, 3, 4))
    assert (change[:4] > 1e-3).all()
    assert (change[4:] < 1e-5).all()
