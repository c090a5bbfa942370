"""Mistakes that users make give one clear sentence."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import save_file


@pytest.fixture
def put(host):
    """Write a file into a model folder and return its name."""

    def write(folder, name, content):
        path = host.base / "models" / folder / name
        if isinstance(content, str):
            path.write_text(content, encoding="utf-8")
        else:
            save_file(content, path)
        return name

    return write


@pytest.mark.usefixtures("tiny_file")
def test_unknown_file_says_where_files_belong_and_guesses(load_model):
    with pytest.raises(ValueError, match=r"model_name: there is no file 'tyny") as error:
        load_model("tyny.safetensors")
    assert "did you mean 'tiny.safetensors'?" in str(error.value)


def test_text_file_with_a_false_name(load_model, put):
    name = put("diffusion_models", "text.safetensors", "this is no model")
    with pytest.raises(ValueError, match="not a safetensors file"):
        load_model(name)


def test_checkpoint_of_another_model(load_model, put):
    name = put(
        "diffusion_models", "wan.safetensors", {"blocks.0.cross_attn.q.weight": torch.ones(2)}
    )
    with pytest.raises(ValueError, match=r"is a Wan transformer: expected a Kandinsky 5"):
        load_model(name)


def test_vae_given_to_the_model_loader(run, put):
    name = put("vae", "no_vae.safetensors", {"something": torch.ones(2)})
    with pytest.raises(ValueError, match="not a model this package knows"):
        run("K5_LoadVAE", vae_name=name)


def test_swapped_text_encoders(run, put):
    layer = "text_model.encoder.layers.0"
    name = put("text_encoders", "l.safetensors", {f"{layer}.mlp.fc1.weight": torch.ones(2)})
    with pytest.raises(ValueError, match=r"not a Qwen2\.5-VL text encoder"):
        run("K5_LoadTextEncoders", qwen_name=name, clip_name=name, task="t2v")


@pytest.mark.parametrize(
    ("width", "height", "length", "nearest"),
    [(130, 128, 17, "128 and 144"), (128, 100, 17, "96 and 112"), (128, 128, 18, "17 and 21")],
)
def test_size_that_does_not_fit_names_the_nearest(run, width, height, length, nearest):
    with pytest.raises(ValueError, match=nearest):
        run("K5_EmptyLatent", width=width, height=height, length=length, batch_size=1)


def test_text_of_another_encoder(model, sample):
    foreign = [[torch.zeros(1, 5, 64), {"pooled_output": torch.zeros(1, 64)}]]
    with pytest.raises(ValueError, match=r"positive: .* widths \(128, 128\)"):
        sample(model, positive=foreign)


def test_latent_of_another_model(model, sample):
    with pytest.raises(ValueError, match="16 channels, the latent has 4"):
        sample(model, latent={"samples": torch.ones(1, 4, 2, 8, 8)})


def test_latent_decoded_with_the_vae_of_another_model(run, load_model, tiny_file, vae):
    tiny = load_model(tiny_file)
    (marked,) = run("K5_EmptyLatent", width=64, height=64, length=5, batch_size=1, model=tiny)
    with pytest.raises(ValueError, match="made for the HunyuanVideo VAE, found the nano VAE"):
        run("K5_Decode", vae=vae, latent=marked, memory_budget_gb=0.0)


@pytest.fixture
def started(run, prompts, vae):
    """Return what Image to Video gives a sampler, encoded with nano's VAE."""
    positive, negative, latent = run(
        "K5_ImageToVideo",
        positive=prompts[0],
        negative=prompts[1],
        vae=vae,
        image=torch.zeros(1, 64, 64, 3),
        width=64,
        height=64,
        length=5,
        batch_size=1,
    )
    return {"positive": positive, "negative": negative, "latent": latent}


def test_first_frame_of_another_vae(load_model, save_tiny, tiny_config, started, sample):
    tiny = load_model(save_tiny("tiny_i2v.safetensors", tiny_config, "i2v"))
    with pytest.raises(ValueError, match="encoded with the nano VAE, this model"):
        sample(tiny, **started)


def test_first_frame_for_a_text_to_video_model(load_model, tiny_file, started, sample):
    with pytest.raises(
        ValueError,
        match=r"model: tiny\.safetensors .* given first frame \(it makes t2v\); load an "
        r"image-to-video checkpoint such as kandinsky5lite_i2v_5s",
    ):
        sample(load_model(tiny_file), **started)


def test_budget_too_small_to_decode(run, vae, latent):
    with pytest.raises(ValueError, match="memory_budget"):
        run("K5_Decode", vae=vae, latent=latent, memory_budget_gb=0.0001)


def test_model_of_another_node(run):
    other = type("Patcher", (), {"model": object()})()
    with pytest.raises(ValueError, match="expected one from Load Model"):
        run("K5_Settings", model=other)


def test_video_of_an_image_model(run, tiny_image_model):
    with pytest.raises(ValueError, match="length: custom makes images, found 5 frames"):
        run(
            "K5_EmptyLatent",
            width=64,
            height=64,
            length=5,
            batch_size=1,
            model=tiny_image_model,
        )


def test_first_frame_for_an_image_model(tiny_image_model, sample, prompts, latent):
    tokens, extra = prompts[0][0]
    with_frame = [[tokens, {**extra, "k5_first_frame": latent["samples"][:, :, :1]}]]
    with pytest.raises(ValueError, match="takes no first frame"):
        sample(tiny_image_model, positive=with_frame)


def test_one_text_encoder_without_the_other(run, put):
    layer = "text_model.encoder.layers.0.self_attn.q_proj.weight"
    name = put("text_encoders", "alone.safetensors", {layer: torch.ones(2)})
    with pytest.raises(ValueError, match=r"clip_name: alone\.safetensors is a clip"):
        run("K5_LoadTextEncoders", qwen_name=name, clip_name="(none)", task="t2v")
