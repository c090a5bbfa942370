"""fp8 and GGUF files through the loader nodes, and what their lists offer."""

from __future__ import annotations

import logging

import pytest
import torch
from safetensors.torch import load_file, save_file

from kandinsky_core.checkpoint import describe_metadata, load_transformer

from .conftest import TINY

FP8 = torch.float8_e4m3fn
MATRIX = "visual_transformer_blocks.0.self_attention.to_query.weight"


@pytest.fixture(scope="module")
def folder(host):
    return host.base / "models" / "diffusion_models"


@pytest.fixture(scope="module")
def weights(folder, tiny_file):
    return load_file(folder / tiny_file)


@pytest.fixture(scope="module")
def gguf_file(folder, weights, write_gguf):
    metadata = describe_metadata(TINY, task="t2v")
    return write_gguf(folder / "tiny-Q8_0.gguf", weights, "Q8_0", metadata=metadata).name


@pytest.fixture(scope="module")
def scaled_file(folder, weights):
    """Scaled fp8 as converters make it, one layer left in bf16."""
    stored = {"scaled_fp8": torch.zeros(0, dtype=FP8)}
    for name, weight in weights.items():
        if weight.ndim < 2 or name == "out_layer.out_layer.weight":
            stored[name] = weight.bfloat16()
        else:
            scale = weight.abs().max() / 400
            stored[name] = (weight / scale).to(FP8)
            stored[name.removesuffix(".weight") + ".scale_weight"] = scale
    stored = {f"model.diffusion_model.{name}": tensor for name, tensor in stored.items()}
    save_file(stored, folder / "tiny_scaled.safetensors", describe_metadata(TINY, task="t2v"))
    return "tiny_scaled.safetensors"


def options(host, node, input_id):
    (found,) = (each for each in host.pack[node].define_schema().inputs if each.id == input_id)
    return found.options


def test_gguf_files_are_listed_from_every_folder(host, gguf_file, write_gguf, weights):
    other = host.base / "output" / "diffusion_models" / "deep"
    other.mkdir(parents=True, exist_ok=True)
    write_gguf(other / "other.gguf", weights)
    write_gguf(host.base / "models" / "text_encoders" / "text.gguf", weights)
    assert {gguf_file, "deep/other.gguf"} <= set(options(host, "K5_LoadModel", "model_name"))
    assert "text.gguf" in options(host, "K5_LoadTextEncoders", "qwen_name")
    locate = host.part("nodes.host.files").locate
    assert locate("diffusion_models", "deep/other.gguf", "model_name") == other / "other.gguf"


@pytest.mark.parametrize(("weight_dtype", "dtype"), [("fp32", torch.float32), ("fp8_e4m3fn", FP8)])
def test_gguf_is_unpacked_to_the_chosen_dtype(
    load_model, folder, gguf_file, sample, caplog, weight_dtype, dtype
):
    with caplog.at_level(logging.INFO):
        model = load_model(gguf_file, weight_dtype)
    lines = [r.getMessage() for r in caplog.records if "is unpacked to" in r.getMessage()]
    assert len(lines) == 1
    assert f"{gguf_file} (GGUF Q8_0)" in lines[0]
    expected = load_transformer(folder / gguf_file, dtype=torch.float32)[0].state_dict()
    for name, weight in model.model.diffusion_model.state_dict().items():
        stored = torch.bfloat16 if dtype == FP8 and weight.ndim < 2 else dtype
        assert torch.equal(weight.float(), expected[name].to(stored).float()), name
        assert weight.dtype == stored
    assert sample(model, steps=1).isfinite().all()


def test_gguf_stays_packed(load_model, folder, gguf_file, sample, caplog, partially):
    with caplog.at_level(logging.INFO):
        model, exact = load_model(gguf_file), load_model(gguf_file, "fp32")
    assert caplog.text.count("is unpacked to") == 1  # the second
    layer = model.model.diffusion_model.get_submodule(MATRIX.removesuffix(".weight"))
    assert (layer.weight.dtype, layer.packing) == (torch.uint8, "Q8_0")
    assert model.model_size() < 0.4 * exact.model_size()
    expected = load_transformer(folder / gguf_file, dtype=torch.float32)[0].state_dict()[MATRIX]
    assert torch.equal(layer.numbers(layer.weight, torch.float32), expected)
    wanted, found = sample(exact, steps=2), sample(model, steps=2)
    assert (found - wanted).norm() < 2e-3 * wanted.norm()  # vectors are kept in bf16
    partially()
    assert torch.equal(sample(model, steps=2), found)
    partially.check(model)


@pytest.fixture(scope="module", params=["Q8_0", "Q4_0"])
def packed_pair(request, load_model, folder, weights, write_gguf):
    """Return a model whose matrices stay packed, and the same as numbers in fp32."""
    metadata = describe_metadata(TINY, task="t2v")
    name = write_gguf(
        folder / f"pair-{request.param}.gguf", weights, request.param, metadata=metadata
    ).name
    return load_model(name), load_model(name, "fp32")


def test_loras_on_gguf_are_exact_and_take_no_memory(packed_pair, sample, with_lora, partially):
    model, exact = packed_pair
    size = model.model_size()
    plain, plain_exact = sample(model, steps=1), sample(exact, steps=1)
    once, twice = with_lora(model), with_lora(with_lora(model))
    change = sample(with_lora(exact), steps=1) - plain_exact
    found = sample(once, steps=1)
    assert (found - plain - change).norm() < 0.01 * change.norm()
    assert sum(t.nbytes for t in model.model.state_dict().values()) == size
    both = sample(twice, steps=1)
    expected = sample(with_lora(with_lora(exact)), steps=1)
    assert (both - plain - (expected - plain_exact)).norm() < 0.01 * (both - plain).norm()
    assert torch.equal(sample(once, steps=1), found)  # another, and back
    assert torch.equal(sample(model, steps=1), plain)  # none
    partially()
    part = sample(twice, steps=1)
    layer = model.model.diffusion_model.get_submodule(MATRIX.removesuffix(".weight"))
    partially.check(twice, patches=layer.packing == "Q8_0")  # in Q4_0 it is small enough to stay
    assert (part - both).norm() < 1e-5 * both.norm()


def test_hooks_on_gguf(host, packed_pair, ksample, prompts, with_lora, sample):
    """A LoRA on one prompt and not on the other, which is put on and taken off in every step."""
    model, _ = packed_pair
    with_lora(model)  # writes the file
    plain = sample(model, steps=1)
    create = host.extra("nodes_hooks").CreateHookLoraModelOnly().create_hook_model_only
    (hooks,) = create("scaled.safetensors", 1.0)
    hooked = host.module("comfy.hooks").set_hooks_for_conditioning(prompts[0], hooks)
    found, wanted = (ksample(each, positive=hooked, steps=3) for each in packed_pair)
    assert (found - wanted).norm() < 0.01 * wanted.norm()
    assert (found - ksample(model, steps=3)).norm() > 0.02 * found.norm()
    assert torch.equal(sample(model, steps=1), plain)


def test_a_packed_model_is_merged(host, packed_pair, load_model, tiny_file, sample):
    merge = host.extra("nodes_model_merging").ModelMergeSimple().merge
    (packed, exact), other = packed_pair, load_model(tiny_file)
    for order in (slice(None), slice(None, None, -1)):
        found = sample(merge(*(packed, other)[order], 0.3)[0], steps=1)
        wanted = sample(merge(*(exact, other)[order], 0.3)[0], steps=1)
        assert (found - wanted).norm() < 0.01 * wanted.norm()


def test_a_packed_model_is_saved_as_numbers(host, packed_pair, with_lora):
    save = host.extra("nodes_model_merging").ModelSave().save
    states = []
    for each in packed_pair:
        save(with_lora(each), "packed")
        newest = max((host.base / "output").glob("packed_*"), key=lambda p: p.stat().st_mtime_ns)
        states.append(load_file(newest))
    found, wanted = (state[f"model.diffusion_model.{MATRIX}"] for state in states)
    assert found.dtype == torch.bfloat16
    assert (found.float() - wanted.float()).norm() < 3e-3 * wanted.float().norm()
    assert torch.uint8 not in {tensor.dtype for tensor in states[0].values()}


def test_plain_fp8_stays(load_model, folder, weights, sample):
    plain = {name: tensor.to(FP8) for name, tensor in weights.items()}
    save_file(plain, folder / "tiny_fp8.safetensors", describe_metadata(TINY, task="t2v"))
    model = load_model("tiny_fp8.safetensors")
    state = model.model.diffusion_model.state_dict()
    assert {tensor.dtype for tensor in state.values() if tensor.ndim > 1} == {FP8}
    assert all(torch.equal(state[name].float(), plain[name].float()) for name in plain)
    exact = sample(load_model("tiny_fp8.safetensors", "fp32"), steps=2)
    assert (sample(model, steps=2) - exact).norm() < 1e-3 * exact.norm()


def fed_fp32(network):
    """Linear and norm layers that are fed fp32 whatever the dtype of the activations."""
    parts = ("time_embeddings", "pooled_text_embeddings", "modulation", "_norm")
    modules = dict(network.named_modules())
    leaves = {name: layer for name, layer in modules.items() if not list(layer.children())}
    return [layer for name, layer in leaves.items() if any(part in name for part in parts)]


def test_scaled_fp8_runs_in_the_hosts_layers(load_model, scaled_file, sample):
    model, exact = load_model(scaled_file), load_model(scaled_file, "fp32")
    network, plain = model.model.diffusion_model, exact.model.diffusion_model
    state = network.state_dict()
    assert state[MATRIX].dtype == FP8
    assert state["out_layer.out_layer.weight"].dtype == torch.bfloat16
    assert state["out_layer.out_layer.scale_weight"] == 1
    scales = {tensor.dtype for name, tensor in state.items() if name.endswith("scale_weight")}
    assert scales == {torch.float32}
    scale = state[MATRIX.replace(".weight", ".scale_weight")]
    assert torch.equal(state[MATRIX].float() * scale, plain.state_dict()[MATRIX])
    assert model.model_size() < 0.4 * exact.model_size()
    # time embedding and modulation stay exact in fp32
    time, expected = network.time_embeddings(torch.tensor([0.3])), plain.time_embeddings
    assert time.dtype == torch.float32
    assert (time - expected(torch.tensor([0.3]))).abs().max() < 1e-5
    for layer, like in zip(fed_fp32(network), fed_fp32(plain), strict=True):
        x = torch.randn(2, layer.weight.shape[-1])
        assert (layer(x) - like(x)).abs().max() < 1e-4
    wanted = sample(exact, steps=2)
    assert (sample(model, steps=2) - wanted).norm() < 1e-3 * wanted.norm()


@pytest.fixture(scope="module")
def with_lora(host):
    """Give a model a random LoRA on `MATRIX`."""
    torch.manual_seed(0)
    key = f"diffusion_model.{MATRIX.removesuffix('.weight')}"
    pair = {"A": torch.randn(4, 64), "B": torch.randn(64, 4)}
    lora = {f"{key}.lora_{name}.weight": tensor * 0.12 for name, tensor in pair.items()}
    save_file(lora, host.base / "models" / "loras" / "scaled.safetensors")
    load = host.native.LoraLoaderModelOnly().load_lora_model_only
    return lambda model: load(model, "scaled.safetensors", 1.0)[0]


def test_lora_on_scaled_fp8(load_model, scaled_file, sample, with_lora):
    model, exact = load_model(scaled_file), load_model(scaled_file, "fp32")
    patched, expected = with_lora(model), with_lora(exact)
    change = sample(expected, steps=1) - sample(exact, steps=1)
    found = sample(patched, steps=1) - sample(model, steps=1)
    # the host rounds the patched weight to fp8 again
    assert (found - change).norm() < 0.3 * change.norm()


@pytest.fixture(params=["plain", "scaled"])
def load_fp8(request, load_model, tiny_file, scaled_file):
    """Load one of the files, as fp8 or as asked."""
    name, stored = (
        (tiny_file, "fp8_e4m3fn") if request.param == "plain" else (scaled_file, "default")
    )
    return lambda dtype=stored: load_model(name, dtype)


def test_fp8_gives_the_same_partially_loaded(load_fp8, sample, partially):
    expected = sample(load_fp8(), steps=2)
    partially()
    part = load_fp8()
    assert torch.equal(sample(part, steps=2), expected)
    partially.check(part)
    assert part.model.diffusion_model.state_dict()[MATRIX].dtype == FP8


def test_lora_on_fp8_partially_loaded(load_fp8, sample, partially, with_lora):
    change = sample(with_lora(load_fp8("fp32")), steps=1) - sample(load_fp8("fp32"), steps=1)
    whole = sample(with_lora(load_fp8()), steps=1)
    partially()
    part = with_lora(load_fp8())
    found = sample(part, steps=1)
    partially.check(part, patches=True)
    # where it is loaded, the host rounds the patched weight to fp8
    assert (found - whole).norm() < 0.5 * change.norm()


def test_saved_scaled_model_loads_again(host, load_model, scaled_file):
    model = load_model(scaled_file)
    host.extra("nodes_model_merging").ModelSave().save(model, "diffusion_models/tiny_t2v")
    path = host.base / "output" / "diffusion_models" / "tiny_t2v_00001_.safetensors"
    assert "model.diffusion_model.scaled_fp8" in load_file(path)
    # native ModelSave writes no metadata, without which a model of this size is of no known kind
    save_file(load_file(path), path.with_name("again.safetensors"), describe_metadata(TINY))
    again = load_model("again.safetensors").model.diffusion_model.state_dict()
    for name, tensor in model.model.diffusion_model.state_dict().items():
        assert torch.equal(again[name].float(), tensor.float()), name
        assert again[name].dtype == tensor.dtype


def test_host_without_scaled_layers_unpacks(
    host, load_model, scaled_file, monkeypatch, caplog, sample
):
    exact = sample(load_model(scaled_file, "fp32"), steps=1)
    monkeypatch.delattr(host.module("comfy.ops"), "scaled_fp8_ops")
    with caplog.at_level(logging.INFO):
        model = load_model(scaled_file)
    assert caplog.text.count("(fp8 scaled (float8_e4m3fn)) is unpacked to") == 1
    state = model.model.diffusion_model.state_dict()
    assert not any(name.endswith("scale_weight") for name in state)
    assert state[MATRIX].itemsize > 1
    out = sample(model, steps=1)
    assert (out - exact).norm() < 0.03 * exact.norm()


def test_damaged_and_foreign_files_say_so(load_model, folder, gguf_file, write_gguf):
    (folder / "cut.gguf").write_bytes((folder / gguf_file).read_bytes()[:-64])
    with pytest.raises(ValueError, match=r"cut\.gguf is cut off: expected"):
        load_model("cut.gguf")
    llm = {"token_embd.weight": torch.ones(2, 2)}
    write_gguf(folder / "llm.gguf", llm, architecture="llama")
    with pytest.raises(ValueError, match=r"other than Qwen2\.5-VL \(GGUF architecture 'llama'"):
        load_model("llm.gguf")
    newer = {"video_pooled_text_embeddings.in_layer.weight": torch.ones(2, 2)}
    save_file(newer, folder / "k6.safetensors")
    with pytest.raises(ValueError, match="is a Kandinsky 6 transformer: expected a Kandinsky 5"):
        load_model("k6.safetensors")
