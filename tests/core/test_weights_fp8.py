"""fp8 files: plain ones stay as they are, scaled ones are multiplied out while they are read."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import save_file

from kandinsky_core.checkpoint import identify, load_transformer, open_checkpoint
from kandinsky_core.errors import CheckpointError
from kandinsky_core.family.variants import VARIANTS
from kandinsky_core.models import CrossDiT
from kandinsky_core.weights import WeightFiles, read_header

FP8 = torch.float8_e4m3fn
MATRIX = "visual_transformer_blocks.1.feed_forward.in_layer.weight"
LAYER = MATRIX.removesuffix(".weight")


@pytest.fixture(scope="module")
def weights() -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    state = CrossDiT(VARIANTS["debug"]).state_dict()
    return {name: torch.randn_like(tensor) * 0.05 for name, tensor in state.items()}


def scaled(weights, suffix, per_row=False, dtype=FP8):
    """Codes and factors as converters make them, and what the weights are then."""
    stored, expected = {}, {}
    for name, weight in weights.items():
        if weight.ndim < 2:
            stored[name] = expected[name] = weight.bfloat16()
            continue
        top = weight.abs().amax(1) if per_row else weight.abs().max()
        scale = top / 400
        stored[name] = (weight / (scale[:, None] if per_row else scale)).to(dtype)
        stored[name.removesuffix(".weight") + suffix] = scale
        expected[name] = stored[name].float() * (scale[:, None] if per_row else scale)
    return stored, expected


@pytest.mark.parametrize("dtype", [FP8, torch.float8_e5m2])
def test_plain_fp8_stays(tmp_path, weights, dtype):
    path = tmp_path / "model.safetensors"
    save_file({name: weight.to(dtype) for name, weight in weights.items()}, path)
    network, info = load_transformer(path)
    assert {p.dtype for p in network.parameters()} == {dtype}
    assert (info.dtype, info.precision) == (dtype, f"fp8 ({str(dtype).removeprefix('torch.')})")
    exact, _ = load_transformer(path, dtype=torch.float32)
    assert torch.equal(exact.state_dict()[MATRIX], weights[MATRIX].to(dtype).float())


@pytest.mark.parametrize("prefix", ["", "model.diffusion_model."])
@pytest.mark.parametrize("per_row", [False, True])
@pytest.mark.parametrize("suffix", [".scale_weight", ".weight_scale"])
def test_scaled_fp8_is_multiplied_out(tmp_path, weights, suffix, per_row, prefix):
    stored, expected = scaled(weights, suffix, per_row)
    if suffix == ".scale_weight":
        stored |= {"scaled_fp8": torch.zeros(0, dtype=FP8), f"{LAYER}.scale_input": torch.ones(())}
    else:
        notes = torch.frombuffer(bytearray(b'{"format": "float8_e4m3fn"}'), dtype=torch.uint8)
        stored |= {f"{LAYER}.input_scale": torch.ones(()), f"{LAYER}.comfy_quant": notes}
    path = tmp_path / "model.safetensors"
    save_file({prefix + name: tensor for name, tensor in stored.items()}, path)
    network, info = load_transformer(path, dtype=torch.float32)
    state = network.state_dict()
    for name, value in expected.items():
        torch.testing.assert_close(state[name], value.float(), rtol=1e-6, atol=0)
    assert info.precision == "fp8 scaled (float8_e4m3fn)"
    assert "parameters in fp8 scaled" in info.describe()
    assert info.num_parameters == sum(weight.numel() for weight in weights.values())
    state = load_transformer(path)[0].state_dict()
    assert {tensor.dtype for tensor in state.values()} == {torch.bfloat16} == {info.dtype}
    assert torch.equal(state[MATRIX], expected[MATRIX].bfloat16())
    assert load_transformer(path, device="meta")[0].state_dict().keys() == weights.keys()


def test_scales_can_be_kept_for_layers_that_use_them(tmp_path, weights):
    path = tmp_path / "model.safetensors"
    stored, _ = scaled(weights, ".weight_scale")
    save_file(stored, path)
    with open_checkpoint(path, keep_scales=True) as checkpoint:
        assert checkpoint.scaled_dtype == FP8
        assert torch.equal(checkpoint[MATRIX].float(), stored[MATRIX].float())
        scale = checkpoint.read(f"{LAYER}.scale_weight", FP8)
        assert (scale.shape, scale.dtype) == ((), torch.float32)
        assert scale == stored[f"{LAYER}.weight_scale"]
    save_file(scaled(weights, ".weight_scale", per_row=True)[0], path)
    with open_checkpoint(path, keep_scales=True) as checkpoint:
        assert checkpoint.scaled_dtype is None
        assert set(checkpoint) == set(weights)


@pytest.mark.parametrize("dtype", [None, torch.float16])
@pytest.mark.parametrize("keep_scales", [True, False])
def test_shapes_and_dtypes_are_told_without_reading(tmp_path, weights, keep_scales, dtype):
    path = tmp_path / "model.safetensors"
    stored = scaled(weights, ".scale_weight")[0] | {"position_ids": torch.arange(3)}
    save_file(stored, path)
    entries = read_header(path).tensors
    with WeightFiles(path, entries, keep_scales=keep_scales) as files:
        for name in files:
            described, tensor = files.describe(name, dtype), files.read(name, dtype)
            assert described.is_meta
            assert (described.shape, described.dtype) == (tensor.shape, tensor.dtype), name


def test_vectors_are_not_rounded_to_8_bits(tmp_path, weights):
    path = tmp_path / "model.safetensors"
    save_file(weights, path)
    state = load_transformer(path, dtype=FP8)[0].state_dict()
    assert {tensor.dtype for tensor in state.values() if tensor.ndim > 1} == {FP8}
    assert {tensor.dtype for tensor in state.values() if tensor.ndim < 2} == {torch.bfloat16}


def test_what_is_wrong_with_the_scales_is_one_sentence(tmp_path, weights):
    path = tmp_path / "model.safetensors"
    stored, _ = scaled(weights, ".scale_weight")
    stored["scaled_fp8"] = torch.zeros(0, dtype=FP8)
    one_less = {k: v for k, v in stored.items() if k != f"{LAYER}.scale_weight"}
    none = {k: v for k, v in stored.items() if not k.endswith(".scale_weight")}
    matrices = sum(weight.ndim > 1 for weight in weights.values())
    packed = {MATRIX: torch.zeros(128, 32, dtype=torch.uint8)}
    packed[f"{LAYER}.weight_scale"] = torch.zeros(128, 4, dtype=FP8)
    cases = [
        (one_less, rf"1 of the fp8 tensors lack their scale, first {MATRIX}"),
        (none, rf"{matrices} of the fp8 tensors lack their scale"),
        (stored | {f"{LAYER}.scale_weight": torch.ones(128, 4)}, r"by \(128, 4\) factors"),
        (weights | packed, r"packed as U8 \(NVFP4 or another format"),
    ]
    for state, message in cases:
        save_file(state, path)
        for use in (identify, load_transformer):
            with pytest.raises(CheckpointError, match=message) as error:
                use(path)
            assert str(error.value).startswith(str(path))
            assert "\n" not in str(error.value)
