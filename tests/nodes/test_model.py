"""What native nodes do to a MODEL: LoRA, merge, save, casting, offloading, caches, compile."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import save_file

PATCHED = ("self_attention.to_query.weight", "0.visual_modulation.out_layer.weight")


@pytest.fixture(scope="session")
def lora_file(host, model):
    """Return a random LoRA on the queries and one modulation, under the network's own names."""
    generator = torch.Generator().manual_seed(0)
    tensors = {}
    for name, weight in model.model.diffusion_model.named_parameters():
        if name.endswith(PATCHED):
            out_dim, in_dim = weight.shape
            key = f"diffusion_model.{name.removesuffix('.weight')}"
            tensors[f"{key}.lora_A.weight"] = torch.randn(4, in_dim, generator=generator) * 0.2
            tensors[f"{key}.lora_B.weight"] = torch.randn(out_dim, 4, generator=generator) * 0.2
    path = host.base / "models" / "loras" / "random.safetensors"
    save_file(tensors, path)
    return path.name


@pytest.fixture
def with_lora(host, lora_file):
    """LoraLoaderModelOnly."""

    def load(model, strength=1.0):
        loader = host.native.LoraLoaderModelOnly()
        return loader.load_lora_model_only(model, lora_file, strength)[0]

    return load


def velocity(model, prompts):
    """One call of the network, as a sampler makes it."""
    x = torch.randn(2, 16, 2, 8, 8, generator=torch.Generator().manual_seed(3))
    (tokens, extra), *_ = prompts[0]
    conds = model.model.extra_conds(noise=x, cross_attn=tokens, **extra)
    ready = {name: cond.process_cond(len(x)).cond for name, cond in conds.items()}
    return model.model.apply_model(x, torch.full((2,), 0.7), **ready)


def test_lora_changes_the_result_by_its_strength(model, sample, with_lora):
    plain = sample(model)
    patched = with_lora(model)
    names = [name for name, _ in model.model.named_parameters()]
    assert len(patched.patches) == sum(name.endswith(PATCHED) for name in names)
    assert (sample(patched) - plain).abs().mean() > 1e-2
    assert torch.equal(sample(with_lora(model, 0.0)), plain)
    assert torch.equal(sample(model), plain)


@pytest.mark.parametrize("lora", [False, True])
def test_partial_loading_gives_equal_output(load_model, prompts, with_lora, lora):
    cpu = torch.device("cpu")
    model = with_lora(load_model()) if lora else load_model()
    model.patch_model(cpu)
    whole = velocity(model, prompts)
    model.unpatch_model(cpu)

    model.partially_load(cpu, extra_memory=model.model_size() // 4)
    assert model.model.model_lowvram
    assert 0 < model.loaded_size() < model.model_size() / 2
    assert torch.equal(velocity(model, prompts), whole)
    model.unpatch_model(cpu)


@pytest.mark.parametrize(
    ("weight_dtype", "bytes_each", "tolerance"),
    [("bf16", 2, 0.02), ("fp8_e4m3fn", 1, 0.15), ("fp8_e5m2", 1, 0.25)],
)
def test_smaller_weight_dtypes_stay_close(
    load_model, model, sample, weight_dtype, bytes_each, tolerance
):
    small = load_model(weight_dtype=weight_dtype)
    assert small.model_size() == pytest.approx(
        model.model.info.num_parameters * bytes_each, rel=0.02
    )
    exact, cast = sample(load_model(weight_dtype="fp32")), sample(small)
    assert (cast - exact).norm() / exact.norm() < tolerance


def test_saved_model_loads_again_and_merges(host, load_model, model, sample, with_lora):
    merging = host.extra("nodes_model_merging")
    merging.ModelSave().save(with_lora(model), "diffusion_models/saved")
    saved = load_model("saved_00001_.safetensors")
    assert saved.model.info.variant == model.model.info.variant
    expected = sample(with_lora(model))
    assert (sample(saved) - expected).abs().max() < 1e-4

    (merged,) = merging.ModelMergeSimple().merge(saved, model, 0.0)
    assert (sample(merged) - sample(model)).abs().max() < 1e-4
    (half,) = merging.ModelMergeSimple().merge(saved, model, 0.5)
    assert (sample(half) - sample(with_lora(model, 0.5))).abs().max() < 1e-3


@pytest.mark.parametrize("name", ["EasyCacheNode", "LazyCacheNode"])
def test_native_caches_skip_steps(host, model, sample, name):
    node = getattr(host.extra("nodes_easycache"), name)
    (cached,) = node.execute(model, 0.5, 0.15, 0.95, False).result
    calls = []

    network = model.model.diffusion_model
    handle = network.out_layer.register_forward_hook(lambda *_: calls.append(1))
    try:
        plain, full = sample(model, steps=16), len(calls)
        calls.clear()
        out, run_steps = sample(cached, steps=16), len(calls)
    finally:
        handle.remove()
    assert run_steps < full
    assert out.isfinite().all()
    assert out.shape == plain.shape


@pytest.mark.slow
def test_compiled_model_gives_the_same(host, load_model, tiny_file, sample):
    tiny = load_model(tiny_file)
    with torch.inference_mode(False):
        compile_node = host.extra("nodes_torch_compile").TorchCompileModel
        (compiled,) = compile_node.execute(tiny, "inductor").result
    plain = sample(tiny, steps=2, cfg=1.0)
    assert (sample(compiled, steps=2, cfg=1.0) - plain).abs().max() < 1e-4


def test_keys_are_the_checkpoints_own(model):
    names = [name for name, _ in model.model.named_parameters()]
    assert all(name.startswith("diffusion_model.") for name in names)
    assert "diffusion_model.visual_transformer_blocks.0.cross_attention.to_key.weight" in names


def test_memory_estimate_grows_with_the_clip_only_in_proportion(model):
    one = model.memory_required((1, 16, 5, 16, 16))
    assert model.memory_required((2, 16, 5, 16, 16)) == pytest.approx(2 * one, rel=0.1)
    # a 5 s clip of Lite size needs gigabytes, not a hundred
    assert 1e6 < one < 1e8
