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


def encode_both(run, host, qwen_name, clip_name="clip.safetensors"):
    """The CLIP, and what the node and the core encode from the same files: (tokens, pooled)."""
    folder = host.base / "models" / "text_encoders"
    names = {"qwen_name": qwen_name, "clip_name": clip_name}
    (clip,) = run("K5_LoadTextEncoders", **names, task="t2v")
    ((tokens, extra),) = run("K5_TextEncode", clip=clip, text="a red fox", task="t2v")[0]
    core = load_qwen_clip(
        folder / qwen_name,
        folder / clip_name,
        qwen_tokenizer=host.path / "comfy/text_encoders/qwen25_tokenizer",
        clip_tokenizer=host.path / "comfy/sd1_tokenizer",
        qwen_config=QWEN_CONFIG,
        clip_config=CLIP_CONFIG,
        dtype=torch.float32,
    )
    expected = core.encode(["a red fox"])
    return clip, (tokens, extra["pooled_output"]), (expected.tokens, expected.pooled)


def test_sharded_qwen_is_one_entry_and_gives_the_same(host, run, large):
    folder = host.base / "models" / "text_encoders" / "qwen_in_two"
    folder.mkdir()
    state = {f"model.{n}": w for n, w in large.qwen.language_model.state_dict().items()}
    names = sorted(state)
    for number, half in enumerate((names[::2], names[1::2]), start=1):
        part = {name: state[name].clone() for name in half}
        save_file(part, folder / f"model-{number:05d}-of-00002.safetensors")
    (listed, *_) = host.pack["K5_LoadTextEncoders"].define_schema().inputs
    assert "qwen_in_two" in listed.options
    _, (tokens, _), (expected, _) = encode_both(run, host, "qwen_in_two")
    assert (tokens - expected).abs().max() < 1e-4


def test_scaled_fp8_clip_is_unpacked(host, run, large):
    folder = host.base / "models" / "text_encoders"
    stored = {}
    for name, weight in large.clip.state_dict().items():
        name = "text_model." + name.removeprefix("text_model.")
        stored[name] = weight.clone()
        if name.endswith(("proj.weight", "fc1.weight", "fc2.weight")):
            scale = weight.abs().max() / 400
            stored[name] = (weight / scale).to(torch.float8_e4m3fn)
            stored[name.removesuffix(".weight") + ".weight_scale"] = scale
    save_file(stored, folder / "clip_scaled.safetensors")
    _, (_, pooled), (_, expected) = encode_both(
        run, host, "qwen.safetensors", "clip_scaled.safetensors"
    )
    assert (pooled - expected).norm() < 0.02 * expected.norm()


@pytest.mark.parametrize("suffix", [".scale_weight", ".weight_scale"])
def test_scaled_fp8_qwen_equals_the_core(run, host, large, caplog, suffix):
    folder = host.base / "models" / "text_encoders"
    stored = {}
    for name, weight in large.qwen.language_model.state_dict().items():
        name = f"model.{name}"
        stored[name] = weight.bfloat16()
        if weight.ndim == 2 and "embed" not in name:
            scale = weight.abs().max() / 400
            stored[name] = (weight / scale).to(torch.float8_e4m3fn)
            stored[name.removesuffix(".weight") + suffix] = scale
        elif name.endswith(".bias"):
            stored[name] = torch.linspace(-1, 1, len(weight)).bfloat16()
    if suffix == ".scale_weight":
        stored["scaled_fp8"] = torch.zeros(2, dtype=torch.float8_e4m3fn)
    save_file(stored, folder / "qwen_scaled.safetensors")
    with caplog.at_level(logging.INFO):
        clip, (tokens, _), (expected, _) = encode_both(run, host, "qwen_scaled.safetensors")
    assert "is unpacked" not in caplog.text
    layer = clip.cond_stage_model.qwen.transformer.model.layers[0].self_attn.q_proj
    assert (layer.weight.dtype, layer.bias.dtype) == (torch.float8_e4m3fn, torch.bfloat16)
    assert (tokens - expected).norm() < 0.02 * expected.norm()


@pytest.mark.parametrize("norms", [torch.bfloat16, torch.float8_e4m3fn])
def test_plain_fp8_qwen_stays_and_equals_the_core(run, host, large, norms):
    folder = host.base / "models" / "text_encoders"
    stored = {
        f"model.{name}": weight.to(torch.float8_e4m3fn if weight.ndim == 2 else norms)
        for name, weight in large.qwen.language_model.state_dict().items()
    }
    save_file(stored, folder / "qwen_fp8.safetensors")
    clip, (tokens, _), (expected, _) = encode_both(run, host, "qwen_fp8.safetensors")
    model = clip.cond_stage_model.qwen.transformer.model
    layer = model.layers[0]
    assert layer.mlp.up_proj.weight.dtype == torch.float8_e4m3fn
    assert layer.self_attn.q_proj.bias.dtype == layer.input_layernorm.weight.dtype == norms
    assert (tokens - expected).norm() < 0.02 * expected.norm()


def test_gguf_qwen_equals_the_core_and_cannot_see(run, host, large, write_gguf, caplog):
    gguf = pytest.importorskip("gguf")
    table = gguf.get_tensor_name_map(gguf.MODEL_ARCH.QWEN2VL, 2)
    stored = {
        table.get_name(f"model.{name}", (".weight", ".bias")): weight
        for name, weight in large.qwen.language_model.state_dict().items()
    }
    path = host.base / "models" / "text_encoders" / "qwen-Q8_0.gguf"
    write_gguf(path, stored, "Q8_0", architecture="qwen2vl")
    with caplog.at_level(logging.INFO):
        clip, (tokens, _), (expected, _) = encode_both(run, host, path.name)
    assert f"{path.name} is unpacked to torch.bfloat16" in caplog.text
    assert (tokens - expected).norm() < 0.02 * expected.norm()
    image = torch.zeros(1, 64, 64, 3)
    with pytest.raises(ValueError, match=r"qwen_name: .*without the vision tower .*mmproj"):
        run("K5_TextEncode", clip=clip, text="make it blue", task="i2i", image=image)
