"""LoRA: our node, native LoraLoaderModelOnly and merging in the core do the same."""

from __future__ import annotations

import logging

import pytest
import torch
from safetensors.torch import load_file, save_file

from kandinsky_core.checkpoint import (
    layer_shapes,
    load_transformer,
    match_lora,
    merge_loras,
    name_layers,
    read_lora,
    save_lora,
)

LAYERS = (
    "visual_transformer_blocks.0.self_attention.to_query",
    "visual_transformer_blocks.0.self_attention.out_layer",
    "visual_transformer_blocks.0.feed_forward.in_layer",
    "text_transformer_blocks.0.self_attention.to_value",
)
RANK, ALPHA = 4, 2.0
STYLES = {
    "peft": "base_model.model.{}.lora_{}.weight",
    "diffusers": "transformer.{}.lora_{}.weight",
    "bare": "{}.lora_{}.weight",
    "comfyui": "diffusion_model.{}.lora_{}.weight",
    "kohya": "lora_unet_{}.lora_{}.weight",
}


@pytest.fixture
def tiny(load_model, tiny_file):
    """Return the one-block MODEL, in fp32 so that results compare; new, so that nothing patched
    it."""
    return load_model(tiny_file, "fp32")


@pytest.fixture
def lora_file(host, tiny):
    """Write a random LoRA: `lora_file("kohya", seed=1)` -> its name."""
    shapes = layer_shapes(tiny.model.diffusion_model)

    def write(style, *, seed=0, trigger="", layers=LAYERS):
        generator = torch.Generator().manual_seed(seed)
        halves = ("down", "up") if style in ("kohya", "comfyui") else ("A", "B")
        tensors = {}
        for layer in layers:
            out_dim, in_dim = shapes.get(layer, (64, 64))
            spelled = layer.replace(".", "_") if style == "kohya" else layer
            name = STYLES[style]
            down, up = (name.format(spelled, half) for half in halves)
            tensors[down] = torch.randn(RANK, in_dim, generator=generator) * 0.2
            tensors[up] = torch.randn(out_dim, RANK, generator=generator) * 0.2
            base = down.partition(".lora_")[0]
            tensors[f"{base}.alpha"] = torch.tensor(ALPHA)
        path = (
            host.base / "models" / "loras" / f"{style}_{seed}_{len(layers)}_{trigger}.safetensors"
        )
        save_file(tensors, path, metadata={"trigger": trigger} if trigger else None)
        return path.name

    return write


@pytest.fixture
def load_lora(run):
    """Our node: `load_lora(model, name, strength, clip=None)` -> model, clip, trigger."""

    def load(model, name, strength=1.0, clip=None):
        return run("K5_LoadLora", model=model, lora_name=name, strength=strength, clip=clip)

    return load


@pytest.fixture
def native(host):
    """LoraLoaderModelOnly."""

    def load(model, name, strength=1.0):
        return host.native.LoraLoaderModelOnly().load_lora_model_only(model, name, strength)[0]

    return load


def weights(model):
    """Return the patched weights, as ComfyUI computes them when it loads the MODEL."""
    model.patch_model(torch.device("cpu"))
    state = {
        name: tensor.clone() for name, tensor in model.model.diffusion_model.state_dict().items()
    }
    model.unpatch_model(torch.device("cpu"))
    return state


def assert_same(found, wanted, *, changed):
    differing = 0
    for name, tensor in wanted[1].items():
        torch.testing.assert_close(found[name], tensor, atol=1e-6, rtol=1e-5)
        differing += not torch.equal(tensor, wanted[0][name])
    assert differing == changed


@pytest.fixture
def in_core(host, tiny_file):
    """Weights before and after merging LoRAs in the core."""

    def merge(*loras):
        with torch.inference_mode(False):
            path = host.base / "models" / "diffusion_models" / tiny_file
            network, _ = load_transformer(path, dtype=torch.float32)
            before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
            folder = host.base / "models" / "loras"
            shapes = layer_shapes(network)
            merge_loras(
                network, [(match_lora(read_lora(folder / name), shapes), s) for name, s in loras]
            )
            return before, network.state_dict()

    return merge


@pytest.mark.parametrize("style", list(STYLES))
def test_node_equals_merging_in_the_core(tiny, lora_file, load_lora, in_core, style):
    name = lora_file(style)
    patched, clip, trigger = load_lora(tiny, name, 0.7)
    assert_same(weights(patched), in_core((name, 0.7)), changed=len(LAYERS))
    assert (clip, trigger) == (None, "")


@pytest.mark.parametrize("style", ["comfyui", "kohya"])
def test_native_loader_equals_ours(tiny, lora_file, load_lora, native, sample, style):
    name = lora_file(style)
    ours = sample(load_lora(tiny, name, 0.7)[0], steps=2)
    assert (ours - sample(native(tiny, name, 0.7), steps=2)).abs().max() < 1e-5
    assert (ours - sample(tiny, steps=2)).abs().mean() > 1e-3


def test_native_loader_reads_what_we_convert(host, tiny, lora_file, load_lora, native, sample):
    name = lora_file("peft")
    folder = host.base / "models" / "loras"
    match = name_layers(read_lora(folder / name))
    save_lora(folder / "converted.safetensors", match.pairs, "comfyui")
    ours = sample(load_lora(tiny, name)[0], steps=2)
    assert (ours - sample(native(tiny, "converted.safetensors"), steps=2)).abs().max() < 1e-5


def test_two_loras_add_up(tiny, lora_file, load_lora, in_core):
    first, second = lora_file("peft"), lora_file("kohya", seed=1)
    both = load_lora(load_lora(tiny, first, 0.5)[0], second, -1.5)[0]
    assert_same(weights(both), in_core((first, 0.5), (second, -1.5)), changed=len(LAYERS))
    # the model that went in is as it was
    before, after = in_core()
    assert_same(weights(tiny), (before, after), changed=0)


def test_strength_zero_changes_nothing(tiny, clip, lora_file, load_lora):
    model, same_clip, trigger = load_lora(tiny, lora_file("peft", trigger="zorb"), 0.0, clip)
    assert model is tiny
    assert same_clip is clip
    assert trigger == ""


def test_fp8_keeps_the_lora(load_model, tiny_file, lora_file, load_lora, sample):
    name = lora_file("diffusers")
    exact = sample(load_lora(load_model(tiny_file, "fp32"), name)[0], steps=2)
    small = load_lora(load_model(tiny_file, "fp8_e4m3fn"), name)[0]
    plain = sample(load_model(tiny_file, "fp32"), steps=2)
    error = (sample(small, steps=2) - exact).norm()
    assert error < 0.5 * (plain - exact).norm()


def test_partial_loading_keeps_every_lora(tiny, lora_file, load_lora, sample, partially):
    first, second = lora_file("diffusers"), lora_file("kohya", seed=1)

    def patched():
        return load_lora(load_lora(tiny, first, 0.5)[0], second, -1.5)[0]

    whole = sample(patched(), steps=2)
    one = sample(load_lora(tiny, first, 0.5)[0], steps=2)
    assert (whole - one).abs().mean() > 1e-3
    partially()
    part = patched()
    out = sample(part, steps=2)
    partially.check(part, patches=True)
    assert (out - whole).abs().max() < 1e-5


def test_saved_model_holds_the_lora(host, tiny, lora_file, load_lora):
    patched = load_lora(tiny, lora_file("peft"))[0]
    host.extra("nodes_model_merging").ModelSave().save(patched, "diffusion_models/with_lora")
    path = host.base / "output" / "diffusion_models" / "with_lora_00001_.safetensors"
    saved, wanted = load_file(path), weights(patched)
    for layer in LAYERS:
        name = f"{layer}.weight"
        torch.testing.assert_close(saved[f"model.diffusion_model.{name}"], wanted[name])


def test_trigger_goes_before_the_prompts_of_the_copy(host, run, tiny, clip, lora_file, load_lora):
    def tokens(chosen, text):
        ((states, _),) = run("K5_TextEncode", clip=chosen, text=text, task="t2v")[0]
        return states

    first, second = lora_file("peft", trigger="red"), lora_file("peft", trigger="star")
    _, triggered, trigger = load_lora(tiny, first, 1.0, clip)
    assert trigger == "red"
    assert torch.equal(tokens(triggered, "circle"), tokens(clip, "red circle"))
    ((native, _),) = host.native.CLIPTextEncode().encode(triggered, "circle")[0]
    assert torch.equal(native, tokens(clip, "red circle"))
    _, both, _ = load_lora(tiny, second, 1.0, triggered)
    assert torch.equal(tokens(both, "circle"), tokens(clip, "red star circle"))
    assert torch.equal(tokens(triggered, ""), tokens(clip, ""))
    assert not torch.equal(tokens(triggered, "circle"), tokens(clip, "circle"))


def test_large_encoders_put_the_trigger_into_the_template(host):
    prompt = host.part("nodes.host.prompt")
    options = {prompt.TRIGGERS: ("zorb",), "task": "t2v"}
    assert prompt.prepare_prompt("a (red:1.2) cat", options) == "zorb a red cat"
    assert prompt.prepare_prompt("a cat", None) == "a cat"


def test_a_foreign_clip_is_refused_where_there_is_a_trigger(tiny, lora_file, load_lora):
    class Foreign:
        tokenizer = "another"

    clip = Foreign()
    assert load_lora(tiny, lora_file("peft"), 1.0, clip)[1] is clip
    with pytest.raises(ValueError, match=r"clip: expected one from .* write the trigger 'zorb'"):
        load_lora(tiny, lora_file("peft", trigger="zorb"), 1.0, clip)


def test_what_has_no_place_is_named_in_the_log(tiny, lora_file, load_lora, caplog):
    far = "visual_transformer_blocks.9.self_attention.to_key"
    with caplog.at_level(logging.WARNING):
        load_lora(tiny, lora_file("peft", layers=(*LAYERS, far)))
    assert f"1 of 5 entries have no place in this model and were left out: {far}" in caplog.text


def test_wrong_files_are_one_sentence(host, tiny, model, lora_file, load_lora):
    name = lora_file("peft")
    with pytest.raises(ValueError, match=r"lora_name: there is no file 'pefd"):
        load_lora(tiny, name.replace("peft", "pefd"))
    with pytest.raises(ValueError, match=r"is a LoRA for debug: at .* \(64, 64\)"):
        load_lora(model, name)
    folder = host.base / "models" / "loras"
    save_file({"some.weight": torch.ones(2)}, folder / "none.safetensors")
    with pytest.raises(ValueError, match="is no LoRA"):
        load_lora(tiny, "none.safetensors")
