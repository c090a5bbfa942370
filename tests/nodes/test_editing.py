"""Image editing in the host: what the network sees, the core's result, batches, edits in a row."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from kandinsky_core.checkpoint import (
    describe_metadata,
    load_transformer,
    load_vae,
    save_checkpoint,
)
from kandinsky_core.family.config import ImageVAEConfig
from kandinsky_core.family.settings import RELEASES, Release
from kandinsky_core.generate import GenerateRequest, generate
from kandinsky_core.models import ImageVAE
from kandinsky_core.nano import nano_path
from kandinsky_core.pipeline import Pipeline
from kandinsky_core.text import load_nano_text_encoder

SIZE = {"width": 48, "height": 64}
PROMPT = "a blue circle"
TINY_VAE = ImageVAEConfig((8, 8, 8, 8), layers_per_block=1, norm_num_groups=4)


@pytest.fixture(scope="module")
def flux_vae(host, run):
    """Return a tiny random image VAE, which stands for FLUX's; returns VAE and path."""
    torch.manual_seed(0)
    path = host.base / "models" / "vae" / "tiny_flux.safetensors"
    with torch.inference_mode(False):
        network = ImageVAE(TINY_VAE)
        save_checkpoint(path, network.state_dict(), describe_metadata(TINY_VAE))
    return run("K5_LoadVAE", vae_name=path.name)[0], path


@pytest.fixture(params=["nano", "flux"])
def family(request, load_model, save_tiny, vae, flux_vae, tiny_config):
    """Return a tiny edit model with its VAE and the VAE's path: 5-D latents, or 4-D ones."""
    if request.param == "nano":
        facts = {"variant": "nano", "stage": "pretrain"}
        name = save_tiny("tiny_nano_edit.safetensors", tiny_config, "i2i", **facts)
        return load_model(name), vae, nano_path("vae")
    return load_model(save_tiny("tiny_i2i.safetensors", tiny_config, "i2i")), *flux_vae


@pytest.fixture
def pro(load_model, tiny_file):
    """Yield a tiny MODEL with the settings of Pro image to video."""
    model = load_model(tiny_file)
    info, release = model.model.info, Release("video_pro", "i2v", 5, "sft")
    model.model.info = replace(info, release=release, settings=RELEASES[release])
    yield model
    model.model.info = info


def pictures(count=1, height=90, width=70, seed=0):
    return torch.rand(count, height, width, 3, generator=torch.Generator().manual_seed(seed))


@pytest.fixture
def prepare(run, clip):
    """From an image to what a sampler takes, through all nodes."""

    def call(model, vae, image, *, prompt=PROMPT, batch_size=1, size=SIZE):
        crop, width, height = run("K5_FitImage", model=model, image=image, **size)
        assert (height, width) == tuple(crop.shape[1:3])
        positive, negative = (
            run("K5_TextEncode", clip=clip, text=text, task="i2i", image=crop)[0]
            for text in (prompt, "")
        )
        given = {"positive": positive, "negative": negative, "vae": vae, "image": crop}
        outputs = run("K5_EditImage", **given, batch_size=batch_size)
        return dict(zip(("positive", "negative", "latent"), outputs, strict=True))

    return call


def test_result_is_the_cores(family, prepare, sample, ksample):
    model, vae, vae_path = family
    levels = np.random.default_rng(0).integers(0, 256, (90, 70, 3), dtype=np.uint8)
    given = prepare(model, vae, torch.from_numpy(levels)[None].float() / 255)
    ours = sample(model, **given)
    assert ours.std() > 0.1
    assert (ours - ksample(model, **given)).abs().max() < 1e-4

    info = model.model.info
    pipeline = Pipeline(
        load_transformer(info.path, dtype=torch.float32)[0],
        load_nano_text_encoder(nano_path("text_encoder"), dtype=torch.float32),
        load_vae(vae_path, dtype=torch.float32),
        replace(info.settings, num_steps=4, guidance_scale=3.0),
        info.tasks,
    )
    expected = generate(
        pipeline, GenerateRequest(PROMPT, task="i2i", image=levels, seed=7, **SIZE)
    ).latents
    assert given["latent"]["samples"].ndim == ours.ndim == (5 if "nano" in str(vae_path) else 4)
    assert (ours.reshape(expected.shape) - expected).abs().max() < 1e-3 * expected.std()


def test_network_sees_the_source_and_a_mask_of_ones(family, prepare, sample, monkeypatch):
    model, vae, _ = family
    seen = []
    embeddings = model.model.diffusion_model.visual_embeddings
    embed = embeddings.forward
    monkeypatch.setattr(embeddings, "forward", lambda x: (seen.append(x.clone()), embed(x))[1])
    given = prepare(model, vae, pictures())
    sample(model, **given)
    source = model.model.process_latent_in(given["positive"][0][1]["k5_source"])
    assert len(seen) == 8  # four steps, prompt and negative prompt
    for x in seen:
        noisy, condition, mask = x.split([16, 16, 1], dim=1)
        assert torch.allclose(condition, source.reshape(condition.shape), atol=1e-6)
        assert mask.eq(1).all()
        assert not torch.allclose(noisy, condition)


def test_result_is_the_same_partially_loaded(family, prepare, sample, partially):
    model, vae, _ = family
    given = prepare(model, vae, pictures())
    expected = sample(model, **given)
    partially()
    out = sample(model, **given)
    partially.check(model)
    assert torch.equal(out, expected)


def test_batch_of_images_equals_one_by_one(family, prepare, sample, ksample):
    model, vae, _ = family
    images = pictures(2)
    together = prepare(model, vae, images)
    assert len(together["positive"][0][0]) == 2  # each prompt is read with its own image
    batch = sample(model, **together)
    assert (batch - ksample(model, **together)).abs().max() < 1e-4
    for i in range(2):
        single = prepare(model, vae, images[i : i + 1])
        single["latent"]["batch_index"] = [i]
        assert (sample(model, **single) - batch[i : i + 1]).abs().max() < 1e-4


def test_several_results_of_one_image_differ(family, prepare, sample):
    model, vae, _ = family
    first, second = sample(model, **prepare(model, vae, pictures(), batch_size=2))
    assert (first - second).abs().max() > 1e-2


def test_one_edit_feeds_the_next(family, prepare, sample, run):
    model, vae, _ = family

    def edit(image, prompt):
        latent = {"samples": sample(model, **prepare(model, vae, image, prompt=prompt))}
        return run("K5_Decode", vae=vae, latent=latent, memory_budget_gb=0.0)[0]

    once = edit(pictures(), "a red circle")
    twice = edit(once, "a navy background")
    assert once.shape == twice.shape == (1, 64, 48, 3)
    other = edit(edit(pictures(), "a blue star"), "a navy background")
    assert (twice - other).abs().max() > 1e-3


@pytest.mark.parametrize(
    ("name", "task", "size"),
    # nearest of the seven 1024-class aspects; the 512x768 area at the image's aspect, in 16s
    [("tiny_i2i.safetensors", "i2i", (768, 1280)), ("tiny_t2v.safetensors", "t2v", (464, 832))],
)
def test_image_is_fitted_to_the_checkpoint(
    run, load_model, save_tiny, tiny_config, name, task, size
):
    model = load_model(save_tiny(name, tiny_config, task))
    crop, width, height = run("K5_FitImage", model=model, image=pictures(1, 90, 160))
    assert (height, width) == size
    assert crop.shape == (1, *size, 3)


@pytest.mark.parametrize(
    ("size_class", "size"),
    # of 2000 x 1500, at the area of each class: multiples of 16, or of NABLA's 128
    [("auto", (544, 720)), ("small", (544, 720)), ("large", (896, 1152))],
)
def test_image_is_fitted_to_a_size_class_of_pro(run, pro, size_class, size):
    image = pictures(1, 1500, 2000)
    crop, width, height = run("K5_FitImage", model=pro, image=image, size_class=size_class)
    assert (height, width) == size
    assert crop.shape == (1, *size, 3)


def test_size_class_that_the_checkpoint_has_not(run, load_model, tiny_file):
    with pytest.raises(ValueError, match=r"size_class: .* one class of sizes"):
        run(
            "K5_FitImage",
            model=load_model(tiny_file),
            image=pictures(),
            size_class="large",
        )


def test_models_that_cannot_edit_say_so(model, tiny_image_model, prepare, sample, vae, flux_vae):
    with pytest.raises(ValueError, match=r"\(nano\) was not trained to edit images"):
        sample(model, **prepare(model, vae, pictures()))
    with pytest.raises(ValueError, match="takes no image to edit; use an image-edit checkpoint"):
        sample(tiny_image_model, **prepare(tiny_image_model, flux_vae[0], pictures()))


def test_edit_model_without_an_image(load_model, save_tiny, tiny_config, sample, latent):
    model = load_model(save_tiny("tiny_i2i.safetensors", tiny_config, "i2i"))
    with pytest.raises(ValueError, match="positive: this model edits images and found none"):
        sample(model, latent={"samples": latent["samples"][:, :, 0]})


def test_source_of_another_vae_or_size(load_model, save_tiny, tiny_config, prepare, sample, vae):
    model = load_model(save_tiny("tiny_i2i.safetensors", tiny_config, "i2i"))
    wrong = prepare(model, vae, pictures())
    wrong["latent"]["samples"] = wrong["latent"]["samples"][:, :, 0]
    with pytest.raises(ValueError, match=r"encoded with the nano VAE, this model .* FLUX\.1 VAE"):
        sample(model, **wrong)


def test_latent_that_is_not_the_sources(family, prepare, sample):
    model, vae, _ = family
    given = prepare(model, vae, pictures())
    given["latent"]["samples"] = given["latent"]["samples"][..., :4]
    with pytest.raises(ValueError, match=r"are 64x32 pixels .* the image to edit is 64x48"):
        sample(model, **given)


def test_prompt_that_was_encoded_with_another_image(run, clip, vae, caplog):
    def encode(image, task="i2i"):
        return run("K5_TextEncode", clip=clip, text=PROMPT, task=task, image=image)[0]

    image = pictures(1, 64, 48)
    given = {"negative": encode(image), "vae": vae, "image": image, "batch_size": 1}
    for other, found in ((pictures(1, 96, 48), "1 of 96x48"), (pictures(2, 64, 48), "2 of 64x48")):
        with pytest.raises(ValueError, match=rf"positive: .*{found} .*\(1 of 64x48\)"):
            run("K5_EditImage", positive=encode(other), **given)
    run("K5_EditImage", positive=encode(image, "t2i"), **given)
    assert "positive was encoded without the image" in caplog.text


def test_image_that_was_not_fitted(run, prompts, vae):
    given = {"positive": prompts[0], "negative": prompts[1], "vae": vae}
    with pytest.raises(ValueError, match=r"image: .*64 and 80.* Put Fit Image"):
        run("K5_EditImage", **given, image=pictures(1, 70, 64), batch_size=1)
    with pytest.raises(ValueError, match=r"batch_size: 2 images .* batch_size is 3"):
        run("K5_EditImage", **given, image=pictures(2, 64, 64), batch_size=3)


@pytest.mark.parametrize(
    ("node_id", "images"),
    [
        ("K5_ImageToVideo", {"image": pictures(), **SIZE, "batch_size": 1}),
        ("K5_ExtendVideo", {"frames": pictures(9, 64, 48), "overlap": 5}),
        ("K5_FirstLastFrame", {"first": pictures(), "last": pictures(), **SIZE, "batch_size": 1}),
    ],
)
def test_image_vae_cannot_give_frames_of_a_clip(run, prompts, flux_vae, node_id, images):
    given = {"positive": prompts[0], "negative": prompts[1], "vae": flux_vae[0], "length": 9}
    with pytest.raises(ValueError, match=r"vae: .* found the FLUX\.1 VAE for images"):
        run(node_id, **given, **images)
