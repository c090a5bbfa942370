"""CLIP: native nodes, weights in prompts, and the large encoders at tiny size."""

from __future__ import annotations

import logging

import pytest
import torch
import transformers
from safetensors.torch import save_file

from kandinsky_core.text import load_qwen_clip

QWEN_CONFIG = {
    "text_config": {
        "vocab_size": 152064,
        "hidden_size": 128,
        "intermediate_size": 256,
        "num_hidden_layers": 2,
        "num_attention_heads": 1,
        "num_key_value_heads": 1,
        "rms_norm_eps": 1e-6,
        "rope_theta": 1_000_000.0,
        "rope_scaling": {"type": "mrope", "mrope_section": [16, 24, 24]},
    },
    "vision_config": {
        "depth": 1,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_heads": 2,
        "out_hidden_size": 128,
        "fullatt_block_indexes": [0],
    },
}
CLIP_CONFIG = {
    "vocab_size": 49408,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 1,
    "projection_dim": 64,
    "hidden_act": "quick_gelu",
}


def test_native_text_encode_equals_ours(host, run, clip):
    text = "a red circle moves right"
    ((tokens, extra),) = run("K5_TextEncode", clip=clip, text=text, task="t2v")[0]
    ((native, native_extra),) = host.native.CLIPTextEncode().encode(clip, text)[0]
    assert torch.equal(tokens, native)
    assert torch.equal(extra["pooled_output"], native_extra["pooled_output"])
    assert "attention_mask" not in extra


def test_weights_leave_their_words_and_plain_brackets_stay(host, caplog):
    strip = host.part("nodes.host.prompt").strip_weights
    with caplog.at_level(logging.WARNING):
        assert strip("a (very (red:1.3) circle:0.8) moves") == "a very red circle moves"
    assert "no effect" in caplog.text
    caplog.clear()
    for text in ("a circle (red)", r"\(at 12:30\)", "ratio 3:2", "(at noon: sharp)"):
        assert strip(text) == text
    assert not caplog.records


def test_unknown_words_are_named_in_the_log(run, clip, caplog):
    with caplog.at_level(logging.WARNING):
        run("K5_TextEncode", clip=clip, text="a red circle zorbs wildly", task="t2v")
    assert "zorbs, wildly" in caplog.text


@pytest.fixture(scope="module")
def large(host):
    """Tiny random Qwen2.5-VL and CLIP-L: files with ComfyUI's names, and the core's encoder."""
    torch.manual_seed(0)
    with torch.inference_mode(False):
        qwen = transformers.Qwen2_5_VLModel(transformers.Qwen2_5_VLConfig(**QWEN_CONFIG))
        clip = transformers.CLIPTextModel(transformers.CLIPTextConfig(**CLIP_CONFIG))
    folder = host.base / "models" / "text_encoders"
    weights = {
        name.replace("language_model.", "model."): tensor.detach().clone()
        for name, tensor in qwen.state_dict().items()
    }
    save_file(weights, folder / "whole.safetensors")
    # the host's vision tower has one size only
    text_only = {k: v for k, v in weights.items() if not k.startswith("visual.")}
    save_file(text_only, folder / "qwen.safetensors")
    clip_weights = {
        "text_model." + name.removeprefix("text_model."): tensor.detach().clone()
        for name, tensor in clip.state_dict().items()
    }
    save_file(clip_weights, folder / "clip.safetensors")
    return load_qwen_clip(
        folder / "whole.safetensors",
        folder / "clip.safetensors",
        qwen_tokenizer=host.path / "comfy/text_encoders/qwen25_tokenizer",
        clip_tokenizer=host.path / "comfy/sd1_tokenizer",
        qwen_config=QWEN_CONFIG,
        clip_config=CLIP_CONFIG,
    )


@pytest.fixture(scope="module")
def large_clip(run, large):
    """The same files through the loader node."""
    assert large.qwen is not None  # which also wrote the files
    names = {"qwen_name": "qwen.safetensors", "clip_name": "clip.safetensors"}
    return run("K5_LoadTextEncoders", **names, task="t2i")[0]


@pytest.mark.parametrize("task", ["t2v", "t2i"])
@pytest.mark.parametrize("text", ["A red fox (in snow) walks. Лиса идёт.", "", "word " * 300])
def test_large_encoders_equal_the_core(run, large, large_clip, task, text):
    expected = large.encode([text], task=task)
    ((tokens, extra),) = run("K5_TextEncode", clip=large_clip, text=text, task=task)[0]
    assert tokens.shape == expected.tokens.shape
    assert (tokens - expected.tokens).abs().max() < 1e-4
    assert (extra["pooled_output"] - expected.pooled).abs().max() < 1e-4


def test_native_text_encode_uses_the_loaders_task(host, large, large_clip):
    expected = large.encode(["a fox"], task="t2i")
    ((tokens, _),) = host.native.CLIPTextEncode().encode(large_clip, "a fox")[0]
    assert (tokens - expected.tokens).abs().max() < 1e-4


def test_edit_prompt_is_the_cores_with_the_image_at_half_size(large, large_clip):
    images = torch.rand(1, 3, 64, 96) * 2 - 1
    options = {"tokenizer_options": {"task": "i2i"}, "images": images}
    pairs = large_clip.tokenize("make it blue", **options)["qwen25_7b"][0]
    found = [pair[0] for pair in pairs]
    expected = large.tokenize(["make it blue"], "i2i", [1])[0][0].tolist()
    (place,) = (i for i, token in enumerate(found) if isinstance(token, dict))
    picture = found[place]["data"]
    assert [*found[:place], *found[place + 1 :]] == [*expected[:place], *expected[place + 1 :]]
    assert picture.shape == (1, 32, 48, 3)
    halved = torch.nn.functional.avg_pool2d(images, 2)  # antialiased halving is near the mean
    assert (picture[0].permute(2, 0, 1) * 2 - 1 - halved[0]).abs().mean() < 0.15


def test_each_image_of_an_edit_gets_a_row(run, clip):
    given = {"clip": clip, "text": "a red circle", "task": "i2i"}
    ((tokens, extra),) = run("K5_TextEncode", **given, image=torch.rand(3, 32, 48, 3))[0]
    ((single, _),) = run("K5_TextEncode", **given, image=torch.rand(1, 32, 48, 3))[0]
    assert tokens.shape == (3, *single.shape[1:])
    assert extra["pooled_output"].shape[0] == 3
    assert extra["k5_seen"] == (3, 32, 48)
