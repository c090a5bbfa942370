"""Every released kind of file at its full size: identified and loaded without the weights.

Names and shapes come from diffusers and transformers on the meta device, dimensions from what was
published. The files are true to the last byte of their headers and holes after that.
"""

from __future__ import annotations

import json
import math
from pathlib import Path

import diffusers
import pytest
import torch
import transformers

from kandinsky_core.checkpoint import identify, load_transformer, load_vae
from kandinsky_core.errors import CheckpointError
from kandinsky_core.text import load_qwen_clip

BYTES = {"F32": 4, "F16": 2, "BF16": 2, "F8_E4M3": 1}

# model_dim, ff_dim, time_dim, text blocks, visual blocks, split of a head, condition channels
TRANSFORMERS = {
    "video_lite": (1792, 7168, 512, 2, 32, (16, 24, 24), True),
    "video_pro": (4096, 16384, 1024, 4, 60, (32, 48, 48), True),
    "image_lite": (2560, 10240, 512, 2, 50, (32, 48, 48), False),
    "image_edit": (2560, 10240, 512, 2, 50, (32, 48, 48), True),
}
QWEN_7B = {
    "text_config": {
        "vocab_size": 152064,
        "hidden_size": 3584,
        "intermediate_size": 18944,
        "num_hidden_layers": 28,
        "num_attention_heads": 28,
        "num_key_value_heads": 4,
    },
    "vision_config": {
        "depth": 32,
        "hidden_size": 1280,
        "intermediate_size": 3420,
        "num_heads": 16,
        "out_hidden_size": 3584,
    },
}
CLIP_L = {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12}
CLIP_L |= {"num_attention_heads": 12, "vocab_size": 49408}


def build(kind: str) -> torch.nn.Module:
    """Return the reference's own module of a kind, on the meta device."""
    with torch.device("meta"):
        if kind in TRANSFORMERS:
            dim, ff, time, text, visual, axes, condition = TRANSFORMERS[kind]
            return diffusers.Kandinsky5Transformer3DModel(
                in_visual_dim=16,
                out_visual_dim=16,
                in_text_dim=3584,
                in_text_dim2=768,
                patch_size=(1, 2, 2),
                model_dim=dim,
                ff_dim=ff,
                time_dim=time,
                num_text_blocks=text,
                num_visual_blocks=visual,
                axes_dims=axes,
                visual_cond=condition,
            )
        if kind == "hunyuan":
            return diffusers.AutoencoderKLHunyuanVideo()
        if kind == "flux":
            return diffusers.AutoencoderKL(
                down_block_types=("DownEncoderBlock2D",) * 4,
                up_block_types=("UpDecoderBlock2D",) * 4,
                block_out_channels=(128, 256, 512, 512),
                layers_per_block=2,
                latent_channels=16,
                use_quant_conv=False,
                use_post_quant_conv=False,
            )
        if kind == "qwen":
            config = transformers.Qwen2_5_VLConfig(**QWEN_7B)
            return transformers.Qwen2_5_VLForConditionalGeneration(config)
        return transformers.CLIPTextModel(transformers.CLIPTextConfig(**CLIP_L))


@pytest.fixture(scope="module")
def shapes():
    """Kind -> names and shapes; each kind is built once."""
    built: dict[str, dict[str, tuple[int, ...]]] = {}

    def of(kind: str) -> dict[str, tuple[int, ...]]:
        if kind not in built:
            state = build(kind).state_dict()
            built[kind] = {name: tuple(tensor.shape) for name, tensor in state.items()}
        return built[kind]

    return of


def write_sparse(path: Path, tensors: dict[str, tuple[str, tuple[int, ...]]]) -> Path:
    """Return a .safetensors file whose tensors, given as (dtype, shape), are a hole."""
    header, end = {}, 0
    for name, (dtype, shape) in tensors.items():
        start, end = end, end + BYTES[dtype] * math.prod(shape)
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + end)
    return path


def write_shards(folder: Path, tensors: dict, stem: str, count: int) -> Path:
    """Return the same as a folder of shards with their index, as Diffusers and transformers write
    it."""
    folder.mkdir(parents=True)
    weight_map = {}
    for index in range(count):
        part = dict(list(tensors.items())[index::count])
        file = f"{stem}-{index + 1:05}-of-{count:05}.safetensors"
        write_sparse(folder / file, part)
        weight_map |= dict.fromkeys(part, file)
    index_file = folder / f"{stem}.safetensors.index.json"
    index_file.write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    return folder


def stored(shapes: dict, dtype: str, prefix: str = "") -> dict[str, tuple[str, tuple[int, ...]]]:
    return {prefix + name: (dtype, shape) for name, shape in shapes.items()}


def scaled(shapes: dict) -> dict[str, tuple[str, tuple[int, ...]]]:
    """As ComfyUI's scaled fp8 files: matrices in fp8 with a factor, the rest in bf16."""
    tensors = {"scaled_fp8": ("F8_E4M3", (0,))}
    for name, shape in shapes.items():
        is_matrix = len(shape) == 2 and "embed_tokens" not in name
        tensors[name] = ("F8_E4M3" if is_matrix else "BF16", shape)
        if is_matrix:
            tensors[name.removesuffix(".weight") + ".scale_weight"] = ("F32", ())
    return tensors


NAMES = {
    "video_lite": ("kandinsky5lite_t2v_sft_5s", "t2v", 2.01),
    "video_pro": ("kandinsky5pro_i2v_sft_5s", "i2v", 19.31),
    "image_lite": ("kandinsky5lite_t2i", "t2i", 6.02),
    "image_edit": ("kandinsky5lite_i2i", "i2i", 6.02),
}


def check_transformer(path: Path, kind: str, expected: dict, precision: str) -> None:
    _, task, billions = NAMES[kind]
    network, info = load_transformer(path, device="meta")
    assert {name: tuple(t.shape) for name, t in network.state_dict().items()} == expected
    assert (info.variant, info.task, info.precision) == (kind, task, precision)
    assert round(info.num_parameters / 1e9, 2) == billions
    first, *lines = info.describe().splitlines()
    assert first == str(path)
    assert f"{billions:.3g} billion parameters in {precision}" in lines[0]
    assert any(f"task {task} (the name" in line for line in lines)
    assert any("steps, guidance" in line for line in lines)


@pytest.mark.parametrize("kind", TRANSFORMERS)
def test_transformers(tmp_path, shapes, kind):
    expected, name = shapes(kind), NAMES[kind][0]
    single = write_sparse(tmp_path / f"{name}.safetensors", stored(expected, "BF16"))
    check_transformer(single, kind, expected, "bfloat16")
    repackaged = tmp_path / f"{name}_fp8_e4m3fn.safetensors"
    write_sparse(repackaged, stored(expected, "F8_E4M3", "model.diffusion_model."))
    check_transformer(repackaged, kind, expected, "fp8 (float8_e4m3fn)")
    with_scales = write_sparse(tmp_path / f"{name}_fp8_scaled.safetensors", scaled(expected))
    check_transformer(with_scales, kind, expected, "fp8 scaled (float8_e4m3fn)")
    pipeline = tmp_path / f"{name}-Diffusers"
    write_shards(pipeline / "transformer", stored(expected, "BF16"), "diffusion_pytorch_model", 3)
    check_transformer(pipeline, kind, expected, "bfloat16")


def write_sparse_gguf(
    path: Path, shapes: dict, kind: str, architecture: str, metadata: dict | None = None
) -> Path:
    """Return a GGUF file whose tensors are a hole; vectors are F32, as converters leave them."""
    gguf = pytest.importorskip("gguf")
    writer, end = gguf.GGUFWriter(path, architecture), 0
    for key, text in (metadata or {}).items():
        writer.add_string(key, text)
    for name, shape in shapes.items():
        as_kind = gguf.GGMLQuantizationType[kind]
        block, size = gguf.GGML_QUANT_SIZES[as_kind]
        if len(shape) < 2 or shape[-1] % block:
            as_kind, (block, size) = gguf.GGMLQuantizationType.F32, (1, 4)
        packed = math.prod(shape) // block * size
        rows = (*shape[:-1], shape[-1] // block * size) if block > 1 else shape
        dtype = torch.uint8 if block > 1 else {2: torch.float16, 4: torch.float32}[size]
        numpy_dtype = torch.empty(0, dtype=dtype).numpy().dtype
        writer.add_tensor_info(name, rows, numpy_dtype, packed, raw_dtype=as_kind)
        end += -(-packed // 32) * 32
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    writer.close()
    with path.open("ab") as file:
        file.truncate(-(-file.tell() // 32) * 32 + end)
    return path


@pytest.mark.parametrize("kind", TRANSFORMERS)
def test_gguf_transformers(tmp_path, shapes, kind):
    path = tmp_path / f"{NAMES[kind][0]}-Q4_K_M.gguf"
    write_sparse_gguf(path, shapes(kind), "Q4_K", "kandinsky5")
    check_transformer(path, kind, shapes(kind), "GGUF Q4_K")
    with path.open("ab") as file:
        file.truncate(path.stat().st_size - 32)
    with pytest.raises(CheckpointError, match="is cut off: expected"):
        identify(path)


@pytest.mark.parametrize(("kind", "dtype"), [("hunyuan", "F16"), ("flux", "F32")])
def test_vaes(tmp_path, shapes, kind, dtype):
    expected = shapes(kind)
    single = write_sparse(tmp_path / "vae.safetensors", stored(expected, dtype))
    folder = write_shards(
        tmp_path / "all" / "vae", stored(expected, dtype), "diffusion_pytorch_model", 2
    )
    for path in (single, folder, folder.parent):
        loaded = load_vae(path, device="meta").state_dict()
        assert {name: tuple(tensor.shape) for name, tensor in loaded.items()} == expected
    info = identify(single)
    assert (info.kind, info.variant) == ("vae", kind)
    assert info.precision == {"F16": "float16", "F32": "float32"}[dtype]


@pytest.mark.slow
def test_text_encoders(tmp_path, shapes, tokenizer_folders):
    qwen, clip = shapes("qwen"), shapes("clip")
    assert sum(map(math.prod, qwen.values())) == 8_292_166_656
    clip = {"text_model." + n.removeprefix("text_model."): shape for n, shape in clip.items()}
    clip_path = write_sparse(tmp_path / "clip_l.safetensors", stored(clip, "F16"))
    older = {
        name.replace("model.language_model.", "model.").replace("model.visual.", "visual."): shape
        for name, shape in qwen.items()
    }
    files = {
        "bfloat16": [
            write_sparse(tmp_path / "new_names.safetensors", stored(qwen, "BF16")),
            write_sparse(tmp_path / "qwen_2.5_vl_7b.safetensors", stored(older, "BF16")),
            write_shards(tmp_path / "sharded", stored(older, "BF16"), "model", 5),
        ],
        "fp8 scaled (float8_e4m3fn)": [
            write_sparse(tmp_path / "qwen_2.5_vl_7b_fp8_scaled.safetensors", scaled(older))
        ],
        "GGUF Q4_K": [write_qwen_gguf(tmp_path / "qwen-Q4_K_M.gguf", older)],
    }
    tower = identify(write_mmproj(tmp_path / "mmproj-Qwen2.5-VL-7B-Instruct-f16.gguf", older))
    assert (tower.variant, tower.precision) == ("qwen2.5-vl vision tower (mmproj)", "GGUF F16")
    assert tower.num_parameters == sum(math.prod(older[n]) for n in older if "visual." in n)
    for precision, paths in files.items():
        for path in paths:
            info = identify(path)
            assert (info.kind, info.precision) == ("text_encoder", precision)
            assert info.variant.startswith("qwen2.5-vl")
            encoder = load_qwen_clip(path, clip_path, device="meta", **tokenizer_folders)
            assert {parameter.device.type for parameter in encoder.parameters()} == {"meta"}
            # all but the language head, which is read when it writes
            parameters = sum(p.numel() for p in encoder.qwen.parameters())
            assert parameters == 8_292_166_656 - 152064 * 3584
    assert (identify(clip_path).variant, identify(clip_path).precision) == ("clip", "float16")


def write_mmproj(path: Path, shapes: dict) -> Path:
    """Return the vision tower, divided as llama.cpp's converter does it."""
    gguf = pytest.importorskip("gguf")
    table = gguf.get_tensor_name_map(gguf.MODEL_ARCH.MMPROJ, 32)
    stored = {}
    for name, shape in shapes.items():
        if name == "visual.patch_embed.proj.weight":
            frame = (*shape[:2], *shape[3:])
            stored |= {"v.patch_embd.weight": frame, "v.patch_embd.weight.1": frame}
        elif ".qkv." in name:
            third = (shape[0] // 3, *shape[1:])
            stored |= {
                table.get_name(name.replace("qkv", part), (".weight", ".bias")): third
                for part in "qkv"
            }
        elif name.startswith("visual."):
            stored[table.get_name(name, (".weight", ".bias"))] = shape
    metadata = {"clip.projector_type": "qwen2.5vl_merger"}
    return write_sparse_gguf(path, stored, "F16", "clip", metadata)


def write_qwen_gguf(path: Path, shapes: dict) -> Path:
    gguf = pytest.importorskip("gguf")
    table = gguf.get_tensor_name_map(gguf.MODEL_ARCH.QWEN2VL, 28)
    stored = {
        table.get_name(name, (".weight", ".bias")): shape
        for name, shape in shapes.items()
        if not name.startswith("visual.")
    }
    return write_sparse_gguf(path, stored, "Q4_K", "qwen2vl")
