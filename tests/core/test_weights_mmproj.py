"""Qwen2.5-VL in two GGUF files: the vision tower (mmproj) beside the language model."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

from kandinsky_core.checkpoint import identify, load_transformer
from kandinsky_core.errors import CheckpointError
from kandinsky_core.weights import WeightFiles, read_qwen_header

gguf = pytest.importorskip("gguf")

WIDTH, VISION_WIDTH, INNER, DEPTH = 64, 32, 96, 2


def tower(out=WIDTH) -> dict[str, torch.Tensor]:
    """Return a vision tower under transformers' names."""
    generator = torch.Generator().manual_seed(0)
    wide = 4 * VISION_WIDTH
    layers = {
        "merger.mlp.0": (wide, wide),
        "merger.mlp.2": (out, wide),
    }
    norms = ["merger.ln_q"]
    for i in range(DEPTH):
        layers |= {
            f"blocks.{i}.attn.qkv": (3 * VISION_WIDTH, VISION_WIDTH),
            f"blocks.{i}.attn.proj": (VISION_WIDTH, VISION_WIDTH),
            f"blocks.{i}.mlp.gate_proj": (INNER, VISION_WIDTH),
            f"blocks.{i}.mlp.up_proj": (INNER, VISION_WIDTH),
            f"blocks.{i}.mlp.down_proj": (VISION_WIDTH, INNER),
        }
        norms += [f"blocks.{i}.norm1", f"blocks.{i}.norm2"]
    shapes = {"patch_embed.proj.weight": (VISION_WIDTH, 3, 2, 14, 14)}
    shapes |= {f"{name}.weight": shape for name, shape in layers.items()}
    shapes |= {f"{name}.bias": shape[:1] for name, shape in layers.items()}
    shapes |= {f"{name}.weight": (VISION_WIDTH,) for name in norms}
    return {
        f"visual.{name}": torch.randn(shape, generator=generator) for name, shape in shapes.items()
    }


@pytest.fixture
def language_model(tmp_path, write_gguf) -> Path:
    """As much of it as tells what it is."""
    arrays = {
        "token_embd.weight": torch.ones(8, WIDTH),
        "output_norm.weight": torch.ones(WIDTH),
        "blk.0.attn_q.bias": torch.ones(WIDTH),
    }
    return write_gguf(tmp_path / "Qwen-F16.gguf", arrays, architecture="qwen2vl")


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize(("kind", "error"), [("F32", 0), ("F16", 3e-4), ("Q8_0", 0.008)])
def test_the_tower_beside_a_language_model_is_put_together(
    language_model, write_mmproj, kind, error, fused
):
    state = tower()
    path = write_mmproj(language_model.with_name("x-mmproj.gguf"), state, kind, fused=fused)
    header = read_qwen_header(language_model)
    assert (header.vision_path, header.why_blind) == (path, "")
    assert header.label == f"{language_model} with x-mmproj.gguf"
    assert set(header.tensors) == {
        *state,
        "model.embed_tokens.weight",
        "model.norm.weight",
        "model.layers.0.self_attn.q_proj.bias",
    }
    with WeightFiles(header.path, header.tensors) as files:
        for name, expected in state.items():
            assert header.tensors[name].shape == expected.shape, name
            found = files.read(name, torch.float32)
            assert found.shape == expected.shape
            assert (found - expected).norm() <= error * expected.norm(), name
            assert files.read(name, torch.float16).dtype == torch.float16
        own = {"F32": torch.float32, "F16": torch.float16, "Q8_0": torch.bfloat16}[kind]
        assert files["visual.blocks.1.attn.qkv.weight"].dtype == own


def test_parts_stored_in_several_types_are_read_as_one(tmp_path):
    queries, keys, values = torch.randn(3, 32, 32)
    names = [f"v.blk.0.attn_{part}.weight" for part in "qkv"]
    for order, own in ((names, torch.float32), (names[::-1], torch.bfloat16)):
        path = tmp_path / f"mmproj-{own}.gguf"
        writer = gguf.GGUFWriter(path, "clip")
        writer.add_string("clip.projector_type", "qwen2.5vl_merger")
        for name, part in zip(names, (queries, keys, values), strict=True):
            kind = gguf.GGMLQuantizationType["F32" if name == order[0] else "Q8_0"]
            writer.add_tensor(name, gguf.quants.quantize(part.numpy(), kind), raw_dtype=kind)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        info = identify(path)
        with WeightFiles(path, info.header.tensors) as files:
            whole = files["visual.blocks.0.attn.qkv.weight"]
            described = files.describe("visual.blocks.0.attn.qkv.weight")
        assert whole.dtype == described.dtype == own
        assert whole.shape == described.shape
        torch.testing.assert_close(
            whole.float(), torch.cat([queries, keys, values]), atol=0.03, rtol=0.01
        )


def test_a_folder_with_both_is_the_language_model(language_model, write_mmproj):
    path = write_mmproj(language_model.with_name("mmproj-f16.gguf"), tower())
    header = read_qwen_header(language_model.parent)
    assert header.vision_path == path
    assert header.tensors["model.norm.weight"].file == language_model


def test_identify_names_both(language_model, write_mmproj):
    path = write_mmproj(language_model.with_name("mmproj-f16.gguf"), tower())
    info = identify(path)
    assert (info.kind, info.variant) == ("text_encoder", "qwen2.5-vl vision tower (mmproj)")
    assert info.precision == "GGUF F16"
    assert info.num_parameters == sum(tensor.numel() for tensor in tower().values())
    assert "needs the language model of Qwen2.5-VL, a GGUF file in the same" in info.describe()
    info = identify(language_model)
    assert info.variant == "qwen2.5-vl without vision"
    assert "for image editing its vision tower: a GGUF file mmproj-" in info.describe()
    with pytest.raises(CheckpointError, match=r"holds a text encoder \(qwen2\.5-vl vision tower"):
        load_transformer(path)


def without(state, name):
    return {key: tensor for key, tensor in state.items() if key != name}


UNFIT = {
    "none": (lambda _write, _folder: None, r"^Qwen-F16\.gguf is the language model alone; put its"),
    "another model": (
        lambda write, folder: write(folder / "mmproj.gguf", tower(), projector="qwen2vl_merger"),
        r"^mmproj\.gguf is the vision tower \(mmproj\) of another model .*projector 'qwen2vl_merg",
    ),
    "another size": (
        lambda write, folder: write(folder / "mmproj.gguf", tower(out=48)),
        r"^mmproj\.gguf is for a language model of width 48, and this one has 64 \(another size",
    ),
    "lacks a tensor": (
        lambda write, folder: write(
            folder / "mmproj.gguf", without(tower(), "visual.blocks.1.norm2.weight")
        ),
        r"lacks 1 of the vision tower's tensors, first visual\.blocks\.1\.norm2\.weight \(download",
    ),
    "lacks its output": (
        lambda write, folder: write(
            folder / "mmproj.gguf", without(tower(), "visual.merger.mlp.2.weight")
        ),
        r"lacks 1 of the vision tower's tensors, first visual\.merger\.mlp\.2\.weight",
    ),
    "a tensor too many": (
        lambda write, folder: write(
            folder / "mmproj.gguf",
            tower() | {"visual.blocks.0.norm1.bias": torch.zeros(VISION_WIDTH)},
        ),
        r"holds 1 tensors that Qwen2\.5-VL's tower has not, first visual\.blocks\.0\.norm1\.bias",
    ),
    "another shape": (
        lambda write, folder: write(
            folder / "mmproj.gguf", tower() | {"visual.blocks.1.norm1.weight": torch.zeros(8)}
        ),
        r"has visual\.blocks\.1\.norm1\.weight of shape \(8,\) \(expected \(32,\)\)",
    ),
    "cut off": (
        lambda write, folder: cut(write(folder / "mmproj.gguf", tower())),
        r"mmproj\.gguf is cut off: expected .*download it again; put",
    ),
    "several": (
        lambda write, folder: [write(folder / f"mmproj-{n}.gguf", tower()) for n in (1, 2)],
        r"^2 mmproj files fit it \(mmproj-1\.gguf, mmproj-2\.gguf\); leave one in ",
    ),
}


def cut(path):
    path.write_bytes(path.read_bytes()[:-64])


@pytest.mark.parametrize("case", UNFIT)
def test_what_does_not_fit_is_left_and_said(language_model, write_mmproj, case):
    write, message = UNFIT[case]
    write(write_mmproj, language_model.parent)
    header = read_qwen_header(language_model)
    assert header.vision_path is None
    assert not any(name.startswith("visual.") for name in header.tensors)
    assert re.search(message, header.why_blind), header.why_blind
    if case != "several":
        assert f"e.g. mmproj-Qwen2.5-VL-7B-Instruct-f16.gguf) into {language_model.parent}" in (
            header.why_blind
        )
    assert "\n" not in header.why_blind


def test_one_that_fits_is_found_among_others(language_model, write_mmproj, write_gguf):
    folder = language_model.parent
    write_mmproj(folder / "mmproj-3B.gguf", tower(out=48))
    write_mmproj(folder / "mmproj-gemma.gguf", tower(), projector="gemma3")
    write_gguf(folder / "mmproj-llama.gguf", {"w": torch.ones(2, 2)}, architecture="llama")
    write_mmproj(folder / "vision.gguf", tower())  # not named so
    path = write_mmproj(folder / "MMPROJ-7B.gguf", tower())
    assert read_qwen_header(language_model).vision_path == path


@pytest.mark.parametrize(
    ("projector", "said"),
    [
        ("qwen2.5vl_merger", r"\(mmproj\) of Qwen2\.5-VL: give the language model of Qwen2\.5-VL"),
        ("gemma3", r"of another model than Qwen2\.5-VL \(projector 'gemma3'\): give the language"),
    ],
)
def test_a_tower_alone_is_no_text_encoder(tmp_path, write_mmproj, projector, said):
    path = write_mmproj(tmp_path / "mmproj.gguf", tower(), projector=projector)
    with pytest.raises(CheckpointError, match=said):
        read_qwen_header(path)
