"""GGUF files: every common type of them, both conventions of names, and what is wrong with some."""

from __future__ import annotations

import struct
import sys
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch

from kandinsky_core.checkpoint import (
    LoraPair,
    describe_metadata,
    identify,
    layer_shapes,
    load_transformer,
    match_lora,
    merge_loras,
    read_lora,
    save_checkpoint,
    save_lora,
)
from kandinsky_core.errors import CheckpointError, MissingExtraError
from kandinsky_core.family.variants import VARIANTS
from kandinsky_core.models import CrossDiT
from kandinsky_core.weights import (
    PACKINGS,
    TensorEntry,
    WeightFiles,
    gguf_file,
    pack_q8_0,
    read_header,
    unpack,
)

gguf = pytest.importorskip("gguf")

MATRIX = "visual_transformer_blocks.1.feed_forward.in_layer.weight"
VECTOR = "visual_transformer_blocks.1.self_attention.to_query.bias"


@pytest.fixture(scope="module")
def weights() -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    state = CrossDiT(VARIANTS["debug"]).state_dict()
    return {name: torch.randn_like(tensor) * 0.05 for name, tensor in state.items()}


@pytest.mark.parametrize(
    ("kind", "error"),
    [
        ("F32", 0),
        ("F16", 3e-4),
        ("BF16", 3e-3),
        ("Q8_0", 0.008),
        ("Q5_1", 0.045),
        ("Q5_0", 0.05),
        ("Q4_1", 0.09),
        ("Q4_0", 0.11),
    ],
)
def test_transformer(tmp_path, weights, write_gguf, kind, error):
    path = write_gguf(tmp_path / f"kandinsky5lite_t2v_sft_5s-{kind}.gguf", weights, kind)
    network, info = load_transformer(path, dtype=torch.float32)
    assert (info.precision, info.variant) == (f"GGUF {kind}", "debug")
    assert f"'kandinsky5lite_t2v_sft_5s-{kind}'" in info.sources["task"]
    assert f"parameters in GGUF {kind}, " in info.describe()
    assert info.num_parameters == sum(weight.numel() for weight in weights.values())
    state = network.state_dict()
    assert {tensor.dtype for tensor in state.values()} == {torch.float32}
    for name, weight in weights.items():
        assert (state[name] - weight).norm() <= error * weight.norm(), name
    assert torch.equal(state[VECTOR], weights[VECTOR])
    default = load_transformer(path)[0].state_dict()
    own = {"F32": torch.float32, "F16": torch.float16}.get(kind, torch.bfloat16)
    # narrow layers and vectors are F32 in the file: one dtype, which is computed in
    kept = {tensor.dtype for tensor in default.values()} - {torch.uint8}
    assert kept == {own} == {info.dtype}
    assert (default[MATRIX].dtype == torch.uint8) == (kind not in ("F32", "F16", "BF16"))
    assert load_transformer(path, device="meta")[0].state_dict().keys() == weights.keys()


@pytest.mark.filterwarnings("ignore:invalid value", "ignore:overflow")
@pytest.mark.parametrize("kind", PACKINGS)
def test_torch_unpacks_as_the_package_does(kind):
    layout = PACKINGS[kind]
    type_ = gguf.GGMLQuantizationType[kind]
    assert (layout.block, layout.block_bytes) == gguf.GGML_QUANT_SIZES[type_]
    rows = np.random.default_rng(3).integers(0, 256, (37, 5 * layout.block_bytes), np.uint8)
    expected = gguf.quants.dequantize(rows, type_)
    found = unpack(torch.from_numpy(rows), kind, torch.float32)
    np.testing.assert_array_equal(found.numpy(), expected)  # not-a-numbers too
    assert layout.packed_columns(found.shape[1]) == rows.shape[1]


def test_unpacking_is_one_operation_of_a_compiled_graph():
    packed = torch.randint(0, 256, (300, 32 * 34), dtype=torch.uint8) & 63  # scales that are finite

    def twice(x):
        return 2 * unpack(x, "Q8_0", torch.bfloat16)

    found = torch.compile(twice, backend="eager", fullgraph=True)(packed)
    assert torch.equal(found, twice(packed))


@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="needs /proc, which is Linux's")
def test_a_packed_file_is_opened_once(tmp_path, weights, write_gguf):
    path = write_gguf(tmp_path / "tiny-Q8_0.gguf", weights, "Q8_0")
    before = len(list(Path("/proc/self/fd").iterdir()))
    network, _ = load_transformer(path)
    packed = [tensor for tensor in network.state_dict().values() if tensor.dtype == torch.uint8]
    assert len(packed) > 20
    assert len(list(Path("/proc/self/fd").iterdir())) <= before + 1


def test_a_file_that_was_cut_since_its_header_was_read_says_so(tmp_path, weights, write_gguf):
    path = write_gguf(tmp_path / "m.gguf", {"w": weights[MATRIX]}, "Q8_0")
    header = read_header(path)
    path.write_bytes(path.read_bytes()[:-100])
    with (
        WeightFiles(path, header.tensors) as files,
        pytest.raises(CheckpointError, match=r"m\.gguf cannot be read at w .*download it again"),
    ):
        files.read_packed("w")


def test_types_may_differ_and_some_are_unpacked(tmp_path, write_gguf):
    """As in files of a K_M mix, and in those with types that torch does not unpack here."""
    rows = {"Q4_K": 144, "Q6_K": 210, "IQ4_XS": 136}
    entries = {}
    for kind, size in rows.items():
        data = np.random.default_rng(4).integers(0, 60, (4, 2 * size), np.uint8)
        entries[kind] = read_header(write_gguf(tmp_path / kind, {"w": data}, kind)).tensors["w"]
    assert [entry.packing for entry in entries.values()] == ["Q4_K", "Q6_K", None]
    same, mixed = (
        TensorEntry.join((entries["Q4_K"], entries[other]), 0) for other in ("Q4_K", "Q6_K")
    )
    assert (same.packing, mixed.packing) == ("Q4_K", None)
    with WeightFiles(tmp_path, {"same": same, "mixed": mixed}) as files:
        both = files.read("same", torch.float32)
        assert torch.equal(unpack(files.read_packed("same"), "Q4_K", torch.float32), both)
        assert files.read("mixed", torch.float32).shape == (8, 512)


def test_packed_weights_are_not_saved_as_bytes(tmp_path, weights, write_gguf):
    path = write_gguf(tmp_path / "tiny-Q8_0.gguf", weights, "Q8_0")
    state = load_transformer(path)[0].state_dict()
    with pytest.raises(ValueError, match=r"is packed as in the GGUF file .* load that file in"):
        save_checkpoint(tmp_path / "copy.safetensors", state)
    assert not (tmp_path / "copy.safetensors").exists()


def test_torch_packs_as_the_package_does():
    weight = torch.randn(5, 96, generator=torch.Generator().manual_seed(0))
    weight[2, :32] = 0
    expected = gguf.quants.quantize(weight.numpy(), gguf.GGMLQuantizationType.Q8_0)
    np.testing.assert_array_equal(pack_q8_0(weight).numpy(), expected)


def velocity(network, dtype):
    generator = torch.Generator().manual_seed(1)
    config = network.config
    x = torch.randn(1, config.input_channels, 2, 4, 4, generator=generator).to(dtype)
    text = torch.randn(1, 5, config.text_dim, generator=generator)
    pooled = torch.randn(1, config.pooled_dim, generator=generator)
    with torch.inference_mode():
        return network(x, torch.tensor([0.4]), text, pooled).float()


@pytest.mark.parametrize("kind", ["Q8_0", "Q4_0"])
def test_a_packed_network_computes_what_the_unpacked_one_does(tmp_path, weights, write_gguf, kind):
    path = write_gguf(tmp_path / f"tiny-{kind}.gguf", weights, kind)
    packed, info = load_transformer(path)
    stored = sum(tensor.nbytes for tensor in packed.state_dict().values())
    assert 8 * stored / info.num_parameters == pytest.approx(info.packed_bits)
    unpacked = load_transformer(path, dtype=torch.float32)[0]
    state = unpacked.state_dict()
    # what is not packed is kept in bf16, off by at most 2^-8; nothing else may differ
    kept = {n: v.float() for n, v in packed.state_dict().items() if v.dtype == torch.bfloat16}
    assert 0 < len(kept) < len(state)
    for name, value in kept.items():
        torch.testing.assert_close(value, state[name], rtol=2**-8, atol=0)
    unpacked.load_state_dict(kept, strict=False)
    exact = velocity(unpacked, torch.float32)
    rounded = velocity(load_transformer(path, dtype=torch.bfloat16)[0], torch.bfloat16)
    assert (velocity(packed, torch.float32) - exact).norm() < 1e-5 * exact.norm()
    assert (velocity(packed, torch.bfloat16) - rounded).norm() < 1e-2 * rounded.norm()


def test_a_lora_on_packed_weights(tmp_path, weights, write_gguf):
    path = write_gguf(tmp_path / "tiny-Q4_0.gguf", weights, "Q4_0")
    name = MATRIX.removesuffix(".weight")
    out_features, in_features = weights[MATRIX].shape
    generator = torch.Generator().manual_seed(2)
    down = torch.randn(2, in_features, generator=generator) * 0.1
    up = torch.randn(out_features, 2, generator=generator) * 0.1
    save_lora(tmp_path / "lora.safetensors", {name: LoraPair(down, up, 1.0)}, "peft")
    packed, exact = load_transformer(path)[0], load_transformer(path, dtype=torch.float32)[0]
    assert layer_shapes(packed) == layer_shapes(exact)
    match = match_lora(read_lora(tmp_path / "lora.safetensors"), layer_shapes(packed))
    before = dict(packed.state_dict())
    for network in (packed, exact):
        merge_loras(network, [(match, 0.5)])
    layer = packed.get_submodule(name)
    found = layer.numbers(layer.weight, torch.float32)
    expected = exact.state_dict()[MATRIX]
    # half a step of eight bits in every block of 32, whose scale is rounded to fp16
    limit = expected.view(-1, 32).abs().amax(1, keepdim=True) / 127 * 0.57
    assert ((found - expected).view(-1, 32).abs() <= limit).all()
    after = packed.state_dict()
    changed = [n for n in before if before[n].shape != after[n].shape]
    assert changed == [MATRIX]


def read(path, name="w", dtype=torch.float32):
    with WeightFiles(path, read_header(path).tensors) as files:
        tensor, described = files.read(name, dtype), files.describe(name, dtype)
    assert (described.shape, described.dtype) == (tensor.shape, tensor.dtype)
    return tensor


def test_q4_k_by_the_layout_of_its_blocks(tmp_path, write_gguf):
    rng = np.random.default_rng(0)
    codes = rng.integers(0, 16, (2, 3, 256))
    scales, minima = rng.integers(0, 64, (2, 2, 3, 8))
    rows = np.zeros((2, 3, 144), np.uint8)
    rows[..., :4] = np.frombuffer(struct.pack("<ee", 0.25, 0.5), np.uint8)
    # six bits each: the first four of both whole, the others as nibbles and two spare bits above
    rows[..., 4:8] = scales[..., :4] | (scales[..., 4:] >> 4 << 6)
    rows[..., 8:12] = minima[..., :4] | (minima[..., 4:] >> 4 << 6)
    rows[..., 12:16] = (scales[..., 4:] & 15) | ((minima[..., 4:] & 15) << 4)
    pairs = codes.reshape(2, 3, 4, 2, 32)  # 32 low nibbles, then the 32 high ones
    rows[..., 16:] = (pairs[..., 0, :] | pairs[..., 1, :] << 4).reshape(2, 3, 128)
    path = write_gguf(tmp_path / "m.gguf", {"w": rows.reshape(2, -1)}, "Q4_K")
    expected = 0.25 * scales[..., None] * codes.reshape(2, 3, 8, 32) - 0.5 * minima[..., None]
    found = read(path)
    assert found.shape == (2, 768)
    np.testing.assert_array_equal(found, expected.reshape(2, 768).astype(np.float32))
    assert torch.equal(read(path, dtype=torch.bfloat16), found.bfloat16())


def test_q6_k_by_the_layout_of_its_blocks(tmp_path, write_gguf):
    rng = np.random.default_rng(1)
    codes, scales = rng.integers(0, 64, (3, 2, 4, 32)), rng.integers(-99, 99, (3, 16))
    low, high = codes & 15, codes >> 4
    rows = np.zeros((3, 210), np.uint8)
    # of each 128: the first two quarters' low bits, with the last two's above them
    rows[:, :128] = (low[:, :, :2] | low[:, :, 2:] << 4).reshape(3, 128)
    shift = np.array([0, 2, 4, 6])[:, None]
    rows[:, 128:192] = (high << shift).sum(2).reshape(3, 64)
    rows[:, 192:208] = scales.astype(np.int8).view(np.uint8)
    rows[:, 208:] = np.frombuffer(struct.pack("<e", 0.125), np.uint8)
    path = write_gguf(tmp_path / "m.gguf", {"w": rows}, "Q6_K")
    expected = 0.125 * scales[..., None] * (codes.reshape(3, 16, 16) - 32)
    np.testing.assert_array_equal(read(path), expected.reshape(3, 256).astype(np.float32))


@pytest.mark.filterwarnings("ignore:invalid value")
@pytest.mark.parametrize("kind", ["Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "IQ4_NL", "IQ4_XS"])
def test_unpacked_in_parts_as_in_one(tmp_path, monkeypatch, write_gguf, kind):
    monkeypatch.setattr(gguf_file, "_CHUNK", 512)
    block, block_bytes = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[kind]]
    rows = np.random.default_rng(2).integers(0, 256, (5, 768 // block * block_bytes), np.uint8)
    path = write_gguf(tmp_path / "m.gguf", {"w": rows}, kind)
    expected = gguf.quants.dequantize(rows, gguf.GGMLQuantizationType[kind])
    np.testing.assert_array_equal(read(path), expected)  # not-a-numbers too
    with torch.inference_mode():  # as ComfyUI runs nodes
        np.testing.assert_array_equal(read(path), expected)


def test_rows_that_do_not_divide_keep_their_shape_beside(tmp_path):
    path, weight = tmp_path / "m.gguf", torch.randn(64, 132)
    kind = gguf.GGMLQuantizationType.Q8_0
    writer = gguf.GGUFWriter(path, "kandinsky5")
    writer.add_array("comfy.gguf.orig_shape.w", [64, 132])
    writer.add_tensor(
        "w", gguf.quants.quantize(weight.reshape(-1, 256).numpy(), kind), raw_dtype=kind
    )
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    found = read(path)
    assert found.shape == weight.shape
    assert (found - weight).norm() < 0.008 * weight.norm()
    assert read_header(path).tensors["w"].packing is None  # a block crosses rows


def test_qwens_names_are_those_of_the_package(tmp_path, write_gguf):
    table = gguf.get_tensor_name_map(gguf.MODEL_ARCH.QWEN2VL, 12)
    parts = ("q_proj", "k_proj", "v_proj")
    names = [
        f"model.layers.11.self_attn.{part}.{kind}" for part in parts for kind in ("weight", "bias")
    ]
    names += [f"model.layers.11.mlp.{part}_proj.weight" for part in ("gate", "up", "down")]
    names += ["model.layers.11.self_attn.o_proj.weight", "model.layers.11.input_layernorm.weight"]
    names += ["model.layers.11.post_attention_layernorm.weight", "model.norm.weight"]
    names += ["model.embed_tokens.weight", "lm_head.weight", "model.layers.0.self_attn.q_proj.bias"]
    stored = {table.get_name(name, (".weight", ".bias")): np.ones((2, 2)) for name in names}
    assert "blk.11.attn_q.bias" in stored
    path = write_gguf(tmp_path / "qwen.gguf", stored, architecture="qwen2vl")
    assert read_header(path).tensors.keys() == set(names)
    info = identify(path)
    assert (info.kind, info.variant) == ("text_encoder", "qwen2.5-vl without vision")
    with pytest.raises(CheckpointError, match=r"holds a text encoder \(qwen2.5-vl without vision"):
        load_transformer(path)


def test_metadata_and_a_tokenizer_of_many_words(tmp_path, weights):
    path = tmp_path / "mine.gguf"
    writer = gguf.GGUFWriter(path, "kandinsky5")
    config = VARIANTS["debug"]
    for key, text in describe_metadata(config, task="t2v", note="привет").items():
        writer.add_string(key, text)
    writer.add_array("tokenizer.ggml.tokens", [f"слово {i}" for i in range(500)])
    writer.add_array("tokenizer.ggml.scores", [0.5] * 500)
    for name, weight in weights.items():
        writer.add_tensor(name, weight.numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    info = identify(path)
    assert (info.config, info.task, info.sources["task"]) == (config, "t2v", "metadata")


def test_folders_and_shards(tmp_path, weights, write_gguf):
    folder = tmp_path / "parts"
    folder.mkdir()
    names = sorted(weights)
    for index, (start, end) in enumerate(pairwise((0, len(names) // 2, len(names))), start=1):
        part = {name: weights[name] for name in names[start:end]}
        write_gguf(folder / f"m-Q8_0-{index:05}-of-00002.gguf", part, "Q8_0")
    assert load_transformer(folder)[1].precision == "GGUF Q8_0"
    with pytest.raises(CheckpointError, match="one of 2 shards: give the folder"):
        identify(folder / "m-Q8_0-00001-of-00002.gguf")
    (folder / "m-Q8_0-00001-of-00002.gguf").unlink()
    with pytest.raises(CheckpointError, match="1 of 2 shards"):
        identify(folder)


def _broken(folder, weights, write_gguf):
    """Name -> file, and what is said of it."""
    good = write_gguf(folder / "good.gguf", weights, "Q4_0").read_bytes()

    def path(name, data):
        (folder / name).write_bytes(data)
        return folder / name

    llama = {"token_embd.weight": np.ones((2, 2)), "blk.0.attn_q.weight": np.ones((2, 2))}
    vision = {"v.patch_embd.weight": np.ones((2, 2))}
    header = b"GGUF" + struct.pack("<IQQ", 3, 1, 0)
    odd = header + struct.pack("<Q1sIQIQ", 1, b"w", 1, 32, 999, 0) + bytes(99)
    return {
        "cut tensors": (path("c.gguf", good[:-100]), rf"expected {len(good):,} bytes .* found"),
        "cut header": (path("h.gguf", good[:500]), "GGUF header goes on after the 500 bytes"),
        "version 1": (path("v.gguf", b"GGUF" + struct.pack("<I", 1) + bytes(99)), "version 1: exp"),
        "value": (
            path("k.gguf", b"GGUF" + struct.pack("<IQQQ1sI", 3, 0, 1, 1, b"k", 77) + bytes(99)),
            "damaged GGUF header .a value of the unknown type 77",
        ),
        "unknown type": (path("t.gguf", odd), "holds w in GGUF's type number 999"),
        "llama": (
            write_gguf(folder / "l.gguf", llama, architecture="llama"),
            r"language model other than Qwen2.5-VL \(GGUF architecture 'llama'\): expected a",
        ),
        "mmproj": (
            write_gguf(
                folder / "m.gguf",
                vision,
                architecture="clip",
                metadata={"clip.projector_type": "gemma3"},
            ),
            r"vision part \(mmproj\) of a language model .*projector 'gemma3'\): expected a",
        ),
        "no tensors": (path("n.gguf", b"GGUF" + struct.pack("<IQQ", 3, 0, 0)), "holds no tensors"),
    }


@pytest.mark.parametrize(
    "case",
    [
        "cut tensors", "cut header", "version 1", "value", "unknown type", "llama", "mmproj",
        "no tensors",
    ],
)  # fmt: skip
def test_broken_files(tmp_path, weights, write_gguf, case):
    path, message = _broken(tmp_path, weights, write_gguf)[case]
    with pytest.raises(CheckpointError, match=message) as error:
        identify(path)
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)


def test_type_that_the_package_only_names(tmp_path, write_gguf):
    bytes_of_a_block = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType.Q8_K][1]
    rows = np.zeros((2, bytes_of_a_block), np.uint8)
    path = write_gguf(tmp_path / "m.gguf", {"w": rows}, "Q8_K")
    with pytest.raises(
        CheckpointError, match=r"holds w in the format Q8_K, which .* cannot unpack"
    ):
        read(path)


def test_missing_package_names_the_extra(tmp_path, weights, write_gguf, monkeypatch):
    path = write_gguf(tmp_path / "m.gguf", weights)
    monkeypatch.setitem(sys.modules, "gguf", None)
    with pytest.raises(
        MissingExtraError, match=r"m\.gguf is a GGUF file, and .*core\[gguf\]"
    ) as error:
        load_transformer(path)
    assert "\n" not in str(error.value)
