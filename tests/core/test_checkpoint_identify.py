"""Every released checkpoint, other models and damaged files, told from the header alone."""

from __future__ import annotations

import json
import math
import zipfile
from pathlib import Path

import pytest
import torch

from kandinsky_core.checkpoint import describe_metadata, identify, load_transformer, load_vae
from kandinsky_core.checkpoint.families import find_known
from kandinsky_core.checkpoint.infer import dit_config
from kandinsky_core.errors import CheckpointError
from kandinsky_core.family.config import DiTConfig, ImageVAEConfig, VideoVAEConfig
from kandinsky_core.family.settings import Release
from kandinsky_core.family.variants import VARIANTS
from kandinsky_core.models import CrossDiT, ImageVAE, VideoVAE
from kandinsky_core.models.vae.keys import to_original_key
from kandinsky_core.nano import nano_path

BYTES = {"F32": 4, "BF16": 2, "F16": 2, "F8_E4M3": 1}

# model_dim, ff_dim, time_dim, text blocks, visual blocks, head_dim, input width, tensors in all
RELEASED = {
    "video_lite": (1792, 7168, 512, 2, 32, 64, 132, 814),
    "video_pro": (4096, 16384, 1024, 4, 60, 128, 132, 1514),
    "image_lite": (2560, 10240, 512, 2, 50, 128, 64, 1246),
    "image_edit": (2560, 10240, 512, 2, 50, 128, 132, 1246),
}


def transformer_shapes(variant: str) -> dict[str, tuple[int, ...]]:
    """Return the names and shapes of a released transformer, written out from the published
    layout."""
    dim, ff, time, text_blocks, visual_blocks, head, in_width, count = RELEASED[variant]
    shapes: dict[str, tuple[int, ...]] = {}

    def linear(name: str, width_in: int, width_out: int, bias: bool = True) -> None:
        shapes[f"{name}.weight"] = (width_out, width_in)
        if bias:
            shapes[f"{name}.bias"] = (width_out,)

    def norm(name: str, width: int, bias: bool) -> None:
        shapes[f"{name}.weight"] = (width,)
        if bias:
            shapes[f"{name}.bias"] = (width,)

    def attention(name: str) -> None:
        for part in ("to_query", "to_key", "to_value", "out_layer"):
            linear(f"{name}.{part}", dim, dim)
        norm(f"{name}.query_norm", head, bias=False)
        norm(f"{name}.key_norm", head, bias=False)

    linear("time_embeddings.in_layer", dim, time)
    linear("time_embeddings.out_layer", time, time)
    linear("text_embeddings.in_layer", 3584, dim)
    norm("text_embeddings.norm", dim, bias=True)
    linear("pooled_text_embeddings.in_layer", 768, time)
    norm("pooled_text_embeddings.norm", time, bias=True)
    linear("visual_embeddings.in_layer", in_width, dim)
    for kind, blocks, parts in (
        ("text", text_blocks, ("self_attention",)),
        ("visual", visual_blocks, ("self_attention", "cross_attention")),
    ):
        for index in range(blocks):
            block = f"{kind}_transformer_blocks.{index}"
            linear(f"{block}.{kind}_modulation.out_layer", time, (6 if kind == "text" else 9) * dim)
            for part in parts:
                attention(f"{block}.{part}")
            linear(f"{block}.feed_forward.in_layer", dim, ff, bias=False)
            linear(f"{block}.feed_forward.out_layer", ff, dim, bias=False)
    linear("out_layer.modulation.out_layer", time, 2 * dim)
    linear("out_layer.out_layer", dim, 64)
    assert len(shapes) == count, "the published number of tensors"
    return shapes


def write_sparse(
    path: Path,
    shapes: dict[str, tuple[int, ...]],
    *,
    dtype: str = "BF16",
    prefix: str = "",
    metadata: dict[str, str] | None = None,
) -> Path:
    """Write a .safetensors file of zeros that takes no room on disk, whatever its size."""
    header: dict[str, object] = {"__metadata__": metadata} if metadata else {}
    end = 0
    for name, shape in shapes.items():
        start, end = end, end + BYTES[dtype] * math.prod(shape)
        header[prefix + name] = {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + end)
    return path


# file or folder name, variant, task, seconds, stage, steps, attention
RELEASES = [
    (f"kandinsky5{size}_t2v_{name}_{seconds}s", f"video_{size}", "t2v", seconds, stage, steps)
    for size, name, seconds, stage, steps in (
        ("lite", "sft", 5, "sft", 50),
        ("lite", "pretrain", 5, "pretrain", 50),
        ("lite", "nocfg", 5, "nocfg", 50),
        ("lite", "distilled16steps", 5, "distilled", 16),
        ("lite", "sft", 10, "sft", 50),
        ("lite", "pretrain", 10, "pretrain", 50),
        ("lite", "nocfg", 10, "nocfg", 50),
        ("lite", "distilled16steps", 10, "distilled", 16),
        ("pro", "sft", 5, "sft", 50),
        ("pro", "pretrain", 5, "pretrain", 50),
        ("pro", "sft", 10, "sft", 50),
        ("pro", "pretrain", 10, "pretrain", 50),
    )
] + [
    ("kandinsky5lite_i2v_5s", "video_lite", "i2v", 5, "sft", 50),
    ("kandinsky5pro_i2v_sft_5s", "video_pro", "i2v", 5, "sft", 50),
    ("kandinsky5lite_t2i", "image_lite", "t2i", None, "sft", 50),
    ("kandinsky5lite_t2i_pretrain", "image_lite", "t2i", None, "pretrain", 50),
    ("kandinsky5lite_i2i", "image_edit", "i2i", None, "sft", 50),
    ("kandinsky5lite_i2i_pretrain", "image_edit", "i2i", None, "pretrain", 50),
]


@pytest.mark.parametrize("row", RELEASES, ids=[row[0] for row in RELEASES])
def test_released_files(tmp_path, row):
    name, variant, task, seconds, stage, steps = row
    path = write_sparse(tmp_path / f"{name}.safetensors", transformer_shapes(variant))
    info = identify(path)
    assert (info.kind, info.variant) == ("transformer", variant)
    assert (info.task, info.seconds, info.stage) == (task, seconds, stage)
    assert info.settings.num_steps == steps
    assert info.settings.num_frames == (24 * seconds + 1 if seconds else 1)
    assert info.dtype == torch.bfloat16
    assert info.config == VARIANTS[variant]
    assert info.tasks == {"i2v": ("t2v", "i2v")}.get(task, (task,))
    assert name in info.sources["task"]
    assert name in info.describe()
    assert json.loads(json.dumps(info.to_dict()))["settings"]["num_steps"] == steps


@pytest.mark.parametrize(
    ("variant", "billions"),
    [("video_lite", 2.01), ("video_pro", 19.31), ("image_lite", 6.02), ("image_edit", 6.02)],
)
@pytest.mark.parametrize(("prefix", "dtype"), [("", "F32"), ("model.diffusion_model.", "F8_E4M3")])
def test_full_size_loads_on_meta(tmp_path, variant, billions, prefix, dtype):
    shapes = transformer_shapes(variant)
    path = write_sparse(tmp_path / "m.safetensors", shapes, prefix=prefix, dtype=dtype)
    network, info = load_transformer(path, device="meta")
    assert {k: tuple(v.shape) for k, v in network.state_dict().items()} == shapes
    assert round(info.num_parameters / 1e9, 2) == billions
    assert info.prefix == prefix
    assert info.sources["task"] == "default"


@pytest.mark.parametrize(
    ("name", "variant", "words"),
    [
        (
            "kandinsky5lite_t2v_sft_10s",
            "video_lite",
            ["made for 512x768, 768x512 or 512x512 (height x width), 241 frames at 24 fps: 50"],
        ),
        (
            "kandinsky5pro_t2v_sft_5s",
            "video_pro",
            ["made for 512x768, 768x512 or", "made for 768x1280, 1280x768, 1024x1024, 640x1408,"],
        ),
        ("kandinsky5lite_t2i", "image_lite", ["896x1152 or 1152x896 (height x width): 50 steps"]),
    ],
)
def test_every_size_and_length_it_was_trained_at_is_told(tmp_path, name, variant, words):
    told = identify(write_sparse(tmp_path / f"{name}.safetensors", transformer_shapes(variant)))
    for each in words:
        assert each in told.describe()


def test_blocks_are_counted_and_none_is_none():
    shapes = transformer_shapes("video_lite")
    assert dit_config(shapes).num_text_blocks == 2
    without = {n: shape for n, shape in shapes.items() if not n.startswith("text_transformer")}
    assert dit_config(without).num_text_blocks == 0


@pytest.mark.parametrize("order", [1, -1])
def test_prefix_is_that_of_the_outermost_network(order):
    signature = "visual_transformer_blocks.0.cross_attention.to_key.weight"
    names = [f"net.{signature}", f"net.teacher.{signature}"][::order]
    assert [family.prefix for family in find_known(names)] == ["net."]
    assert [family.prefix for family in find_known([*names, signature])] == [""]
    assert find_known([f"other_{signature}", f"net.{signature}.scale"]) == []


@pytest.mark.parametrize("prefix", ["transformer.", "module.", "diffusion_model.", "a.b.c."])
def test_any_prefix_and_other_parts_beside_it(tmp_path, prefix):
    shapes = {prefix + name: shape for name, shape in transformer_shapes("video_lite").items()}
    extra = {"vae.decoder.conv_in.weight": (8, 8), "model_ema.decay": ()}
    info = identify(write_sparse(tmp_path / "m.safetensors", shapes | extra))
    assert (info.prefix, info.variant) == (prefix, "video_lite")
    assert round(info.num_parameters / 1e9, 2) == 2.01


def test_diffusers_folder_in_a_download_cache(tmp_path):
    folder = tmp_path / "models--org--Kandinsky-5.0-I2V-Pro-distilled-5s-Diffusers/snapshots/3f"
    (folder / "transformer").mkdir(parents=True)
    shapes = transformer_shapes("video_pro")
    weight_map = {}
    names = list(shapes)
    for index, part in enumerate((names[:700], names[700:]), start=1):
        shard = f"diffusion_pytorch_model-{index:05}-of-00002.safetensors"
        write_sparse(folder / "transformer" / shard, {name: shapes[name] for name in part})
        weight_map |= dict.fromkeys(part, shard)
    index_file = folder / "transformer" / "diffusion_pytorch_model.safetensors.index.json"
    index_file.write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    for path in (folder, folder / "transformer", index_file):
        info = identify(path)
        assert (info.variant, info.task, info.stage) == ("video_pro", "i2v", "distilled")
        assert info.settings.num_steps == 16
        assert len(info.header.tensors) == 1514
    index_file.unlink()
    assert len(identify(folder).header.tensors) == 1514
    shard = folder / "transformer" / "diffusion_pytorch_model-00002-of-00002.safetensors"
    with pytest.raises(CheckpointError, match="one of 2 shards: give the folder"):
        identify(shard)
    shard.unlink()
    with pytest.raises(CheckpointError, match="1 of 2 shards"):
        identify(folder)
    index_file.write_text(json.dumps({"weight_map": weight_map}))
    with pytest.raises(CheckpointError, match=r"lacks 1 of 2 shards, first .*-00002-of-00002"):
        identify(folder)


def test_diffusers_config_tells_the_clip_length(tmp_path):
    folder = tmp_path / "renamed"
    folder.mkdir()
    write_sparse(folder / "diffusion_pytorch_model.safetensors", transformer_shapes("video_lite"))
    config = {"attention_type": "nabla", "attention_P": 0.9}
    (folder / "config.json").write_text(json.dumps(config))
    for place in (folder, folder / "diffusion_pytorch_model.safetensors"):
        info = identify(place)
        assert (info.seconds, info.sources["seconds"]) == (10, "config.json")
        assert info.settings.attention == "nabla"


def test_a_name_cannot_make_a_video_model_an_image_model(tmp_path):
    shapes = transformer_shapes("video_lite")
    info = identify(write_sparse(tmp_path / "kandinsky5lite_t2i.safetensors", shapes))
    assert (info.task, info.sources["task"]) == ("t2v", "default")


def test_metadata_beats_the_name(tmp_path):
    config = VARIANTS["video_lite"]
    metadata = describe_metadata(config, task="i2v", seconds=5, stage="sft")
    path = tmp_path / "kandinsky5lite_t2v_nocfg_10s.safetensors"
    info = identify(write_sparse(path, transformer_shapes("video_lite"), metadata=metadata))
    assert (info.task, info.seconds, info.stage) == ("i2v", 5, "sft")
    assert info.settings.shift == 10
    assert info.sources["task"] == info.sources["config"] == "metadata"


def test_a_file_may_list_its_tasks(tmp_path):
    shapes, config = transformer_shapes("video_lite"), VARIANTS["video_lite"]
    path = write_sparse(tmp_path / "a.safetensors", shapes, metadata=describe_metadata(config))
    assert identify(path).tasks == ("t2v", "i2v")
    metadata = describe_metadata(config, tasks=["i2i", "t2v", "unheard-of"])
    path = write_sparse(tmp_path / "b.safetensors", shapes, metadata=metadata)
    assert identify(path).tasks == ("t2v", "i2i")


def test_nano_does_all_but_edits_and_its_edit_model_only_those(tmp_path):
    assert identify(nano_path("transformer")).tasks == ("t2v", "i2v", "t2i")
    config = VARIANTS["nano"]
    network = CrossDiT(config, device="meta")
    shapes = {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}
    for task, tasks in (("t2v", ("t2v", "i2v", "t2i")), ("i2i", ("i2i",))):
        facts = {"variant": "nano", "task": task, "stage": "pretrain"}
        path = tmp_path / f"{task}.safetensors"
        info = identify(write_sparse(path, shapes, metadata=describe_metadata(config, **facts)))
        assert (info.release, info.tasks) == (Release("nano", task, None, "pretrain"), tasks)
        assert info.to_dict()["tasks"] == list(tasks)
        assert info.settings.sizes == ((128, 128),)
        assert info.settings.num_frames == (17 if task == "t2v" else 1)


def test_metadata_must_agree_with_the_weights(tmp_path):
    shapes = transformer_shapes("video_lite")
    for metadata, message in (
        (describe_metadata(VARIANTS["image_edit"]), "heads are 64 wide"),
        (describe_metadata(VARIANTS["nano"]), "says model_dim 192, its weights 1792"),
        ({"kandinsky_core": "{"}, "unreadable 'kandinsky_core' entry"),
        ({"kandinsky_core": '{"config": {"colour": 1}}'}, "no DiTConfig"),
    ):
        path = write_sparse(tmp_path / "m.safetensors", shapes, metadata=metadata)
        with pytest.raises(CheckpointError, match=message):
            identify(path)


def test_unknown_size_needs_metadata(tmp_path):
    shapes = transformer_shapes("video_lite")
    shorter = {k: v for k, v in shapes.items() if not k.startswith("visual_transformer_blocks.31.")}
    path = write_sparse(tmp_path / "m.safetensors", shorter)
    with pytest.raises(CheckpointError, match="of no known size: it is 1792 wide with 31 visual"):
        identify(path)
    config = DiTConfig(1792, 7168, 512, 2, 31, (16, 24, 24))
    info = identify(write_sparse(path, shorter, metadata=describe_metadata(config, task="t2v")))
    assert (info.variant, info.config) == ("custom", config)
    assert info.settings.num_steps == 50


@pytest.mark.parametrize("layout", ["diffusers", "original"])
@pytest.mark.parametrize(
    ("network", "name"),
    [
        (VideoVAE(VideoVAEConfig(), device="meta"), "hunyuan"),
        (ImageVAE(ImageVAEConfig(), device="meta"), "flux"),
    ],
    ids=["hunyuan", "flux"],
)
def test_full_size_vaes_in_both_layouts(tmp_path, network, name, layout):
    shapes = {key: tuple(value.shape) for key, value in network.state_dict().items()}
    stored = shapes
    if layout == "original":
        ones = (1, 1, 1) if name == "hunyuan" else (1, 1)
        stored = {
            to_original_key(key, 4): (*shape, *ones) if ".to_" in key and len(shape) == 2 else shape
            for key, shape in shapes.items()
        }
        assert "decoder.up.0.block.0.norm1.weight" in stored
    path = write_sparse(tmp_path / "vae.safetensors", stored, prefix="vae.")
    info = identify(path)
    assert (info.kind, info.variant, info.layout, info.prefix) == ("vae", name, layout, "vae.")
    assert info.config == network.config
    loaded = load_vae(path, device="meta")
    assert type(loaded) is type(network)
    assert {k: tuple(v.shape) for k, v in loaded.state_dict().items()} == shapes


FOREIGN = {
    "Wan transformer": "model.diffusion_model.blocks.0.cross_attn.q.weight",
    "HunyuanVideo transformer": "txt_in.individual_token_refiner.blocks.0.norm1.weight",
    "FLUX transformer": "double_blocks.0.img_attn.norm.key_norm.scale",
    "Qwen-Image": "transformer_blocks.0.img_mod.1.weight",
    "LTX-Video": "patchify_proj.weight",
    "Stable Diffusion 3": "joint_blocks.0.x_block.attn.qkv.weight",
    "Stable Diffusion": "model.diffusion_model.input_blocks.0.0.weight",
    "Wan VAE": "decoder.middle.0.residual.0.gamma",
    "a Kandinsky 6 transformer": "video_pooled_text_embeddings.in_layer.weight",
    "vision part": "v.patch_embd.weight",
    "T5": "encoder.block.0.layer.0.SelfAttention.q.weight",
    "a LoRA": "transformer.visual_transformer_blocks.0.cross_attention.to_key.lora_A.weight",
    "not a model this package knows": "something.else",
}


@pytest.mark.parametrize("family", FOREIGN)
def test_other_models_are_named(tmp_path, family):
    # a checkpoint of another model often brings a VAE and a text encoder that look like ours
    names = [FOREIGN[family]]
    if "diffusion_model" in names[0]:
        names += [
            "first_stage_model.decoder.up_blocks.0.resnets.0.conv1.weight",
            "cond_stage_model.text_model.encoder.layers.0.self_attn.q_proj.weight",
        ]
    path = write_sparse(tmp_path / "other.safetensors", dict.fromkeys(names, (4, 4)))
    with pytest.raises(CheckpointError, match=family) as error:
        identify(path)
    assert str(path) in str(error.value)
    with pytest.raises(CheckpointError, match=family):
        load_transformer(path)


def test_the_wrong_part_is_named(tmp_path):
    transformer = write_sparse(tmp_path / "t.safetensors", transformer_shapes("video_lite"))
    with pytest.raises(
        CheckpointError, match=r"holds a transformer \(kandinsky5\): expected a vae"
    ):
        load_vae(transformer)
    clip = {"text_model.encoder.layers.0.self_attn.q_proj.weight": (768, 768)}
    path = write_sparse(tmp_path / "clip.safetensors", clip)
    assert (identify(path).kind, identify(path).variant) == ("text_encoder", "clip")
    with pytest.raises(CheckpointError, match=r"holds a text encoder \(clip\)"):
        load_transformer(path)
    # the same convolutions as FLUX's VAE has, and norms of its own
    wan = ("decoder.up_blocks.0.resnets.0.conv1.weight", "decoder.mid_block.resnets.0.norm1.gamma")
    path = write_sparse(tmp_path / "wan.safetensors", dict.fromkeys(wan, (4, 4)))
    with pytest.raises(CheckpointError, match="is a Wan VAE: expected a Kandinsky 5 vae"):
        load_vae(path)
    vae = VideoVAE(VideoVAEConfig(latent_channels=32), device="meta").state_dict()
    path = write_sparse(tmp_path / "v.safetensors", {k: tuple(v.shape) for k, v in vae.items()})
    with pytest.raises(CheckpointError, match="32 latent channels where 16 are expected"):
        identify(path)


def _damaged(folder: Path) -> dict[str, tuple[Path, str]]:
    shapes = transformer_shapes("video_lite")

    def path(name: str, data: bytes | None = None) -> Path:
        if data is not None:
            (folder / name).write_bytes(data)
        return folder / name

    with write_sparse(path("whole.safetensors"), shapes).open("rb") as file:
        whole = file.read(500_000)  # of 4 GB
    length = int.from_bytes(whole[:8], "little")
    cut = write_sparse(path("cut.safetensors"), shapes)
    with cut.open("rb+") as file:
        file.truncate(1_000_000)
    with zipfile.ZipFile(path("zip.pt"), "w") as file:
        file.writestr("archive/data.pkl", b"")
    (folder / "empty folder").mkdir()
    (folder / "two").mkdir()
    for name in ("a", "b"):
        write_sparse(folder / "two" / f"{name}.safetensors", {"x": (1,)})
    bad_index = path("bad.safetensors.index.json", b'{"weights": {}}')
    lacking = {k: v for k, v in shapes.items() if k != "time_embeddings.in_layer.weight"}
    return {
        "missing": (path("nowhere.safetensors"), "does not exist"),
        "empty": (path("empty.safetensors", b""), r"is empty \(0 bytes\)"),
        "text": (path("text.safetensors", b"<!DOCTYPE html><p>log in</p>"), "not a safetensors"),
        "short": (path("short.safetensors", b"abc"), "not a safetensors"),
        "cut tensors": (cut, "cut off: expected 4,0.* bytes by its header, found 1,000,000 bytes"),
        "cut header": (path("h.safetensors", whole[: length // 2]), "cut off: expected a header"),
        "broken header": (
            path("j.safetensors", (20).to_bytes(8, "little") + b'{"a": [1, 2, 3}   ...'),
            "damaged safetensors header",
        ),
        "no tensors": (path("n.safetensors", (2).to_bytes(8, "little") + b"{}"), "no tensors"),
        "gguf": (path("m.gguf", b"GGUF\x03\x00\x00\x00more"), "cut off: its GGUF header goes on"),
        "pickle": (path("m.ckpt", b"\x80\x02}q\x00."), "is a pickle"),
        "zip": (folder / "zip.pt", "is a pickle"),
        "renamed pickle": (path("p.safetensors", b"\x80\x02}q\x00X\x05\x00."), "is a pickle"),
        "lfs": (path("l.safetensors", b"version https://git-lfs.github.com/spec/v1\n"), "git lfs"),
        "empty folder": (folder / "empty folder", "holds no .safetensors or .gguf file"),
        "two files": (folder / "two", r"2 .safetensors files \(a.safetensors, b.safetensors"),
        "bad index": (bad_index, "not an index of shards"),
        "lacks a tensor": (
            write_sparse(path("lack.safetensors"), lacking),
            "lacks the tensor time_embeddings.in_layer.weight",
        ),
    }


@pytest.mark.parametrize(
    "case",
    [
        "missing", "empty", "text", "short", "cut tensors", "cut header", "broken header",
        "no tensors", "gguf", "pickle", "zip", "renamed pickle", "lfs", "empty folder",
        "two files", "bad index", "lacks a tensor",
    ],
)  # fmt: skip
def test_damaged_files(tmp_path, case):
    path, message = _damaged(tmp_path)[case]
    with pytest.raises(CheckpointError, match=message) as error:
        identify(path)
    sentence = str(error.value)
    assert path.name in sentence
    assert sentence.endswith(".")
    assert "\n" not in sentence
