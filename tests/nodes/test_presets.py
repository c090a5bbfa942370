"""K5_Preset: values, names, and what its outputs connect to."""

from __future__ import annotations

import json

import pytest
import torch

from kandinsky_core.family.variants import VARIANTS
from kandinsky_core.models import CrossDiT

NAMES = ("steps", "cfg", "shift", "width", "height", "length", "fps", "negative")
NAMES += ("model_name", "task", "report", "vae_name", "qwen_name", "clip_name", "weight_dtype")


@pytest.fixture
def preset(run):
    """Run K5_Preset; returns its outputs by name."""

    def call(name, orientation="auto"):
        outputs = run("K5_Preset", preset=name, orientation=orientation)
        return dict(zip(NAMES, outputs, strict=True))

    return call


def test_values_of_a_released_checkpoint(preset):
    outputs = preset("Pro HD 10 s", "portrait")
    assert (outputs["steps"], outputs["cfg"], outputs["shift"]) == (50, 5, 10)
    assert (outputs["width"], outputs["height"]) == (768, 1280)
    assert (outputs["length"], outputs["fps"], outputs["task"]) == (241, 24, "t2v")
    assert outputs["negative"].startswith("Static, 2D cartoon")
    assert outputs["model_name"] == "kandinsky5pro_t2v_sft_10s.safetensors"
    assert outputs["vae_name"] == "hunyuan_video_vae_bf16.safetensors"
    assert preset("Image")["vae_name"] == "ae.safetensors"
    for words in ("kandinsky5pro_t2v_sft_10s", "HunyuanVideo's VAE", "P: 0.7 (checkpoint table)"):
        assert words in outputs["report"]


def test_every_choice_runs(host, preset):
    (choice, orientation) = host.pack["K5_Preset"].define_schema().inputs
    tasks = host.part("kandinsky_core.family").TASKS
    for name in choice.options:
        for each in orientation.options:
            assert preset(name, each)["task"] in tasks


def test_your_copy_of_the_file_is_found_in_a_sub_folder(host, preset):
    folder = host.base / "models" / "diffusion_models" / "k5"
    folder.mkdir()
    file = folder / "kandinsky5lite_t2i.safetensors"
    file.touch()
    try:
        name = preset("Image")["model_name"]
    finally:
        file.unlink()
        folder.rmdir()
    assert name.replace("\\", "/") == "k5/kandinsky5lite_t2i.safetensors"


@pytest.fixture
def put(host):
    """Put a file or folder into a model folder for one test; returns its name in the lists."""
    written = []

    def place(folder, name):
        path = host.base / "models" / folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        written.append(path)
        return path

    yield place
    for path in written:
        path.unlink()


def write_header(path, variant):
    """Write the names and shapes of a released transformer, its data a hole in the file."""
    with torch.device("meta"):
        shapes = {key: each.shape for key, each in CrossDiT(VARIANTS[variant]).state_dict().items()}
    header, end = {}, 0
    for name, shape in shapes.items():
        size = 2 * shape.numel()
        header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [end, end + size]}
        end += size
    text = json.dumps(header).encode()
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + end)


def test_copies_by_other_names_are_found_by_what_they_are(put, preset, caplog):
    wrong = "others/t2v_5s_lite.safetensors"
    right = "others/Kandinsky-5.0-T2V-Pro-sft-5s_bf16.safetensors"
    write_header(put("diffusion_models", wrong), "video_lite")
    write_header(put("diffusion_models", right), "video_pro")
    put("diffusion_models", "damaged_t2v_sft_10s.safetensors").write_bytes(b"no weights")
    text = b'{"__metadata__": 5, "a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}'
    odd = put("diffusion_models", "kandinsky_t2v_odd.safetensors")
    odd.write_bytes(len(text).to_bytes(8, "little") + text + bytes(4))
    assert preset("Pro SD 5 s")["model_name"].replace("\\", "/") == right
    assert preset("Pro SD 10 s")["model_name"] == "kandinsky5pro_t2v_sft_10s.safetensors"
    assert preset("Lite 5 s")["model_name"].replace("\\", "/") == wrong
    assert "kandinsky_t2v_odd.safetensors is left out of the presets" in caplog.text


def test_encoders_and_vae_are_those_you_have(put, preset):
    names = {
        "qwen_name": ("text_encoders", "Qwen2.5-VL-7B-Instruct-Q4_K_M.gguf"),
        "clip_name": ("text_encoders", "clip-vit-large-patch14.safetensors"),
        "vae_name": ("vae", "hunyuanvideo-vae-fp16.safetensors"),
    }
    for folder, name in names.values():
        put(folder, name).touch()
    outputs = preset("Lite 10 s")
    for output, (_, name) in names.items():
        assert outputs[output] == name
    assert preset("Image")["vae_name"] == "ae.safetensors"


def test_nano_runs_from_the_preset_alone(preset, run, load_model):
    outputs = preset("nano image")
    model = load_model(outputs["model_name"], outputs["weight_dtype"])
    run("K5_LoadVAE", vae_name=outputs["vae_name"])
    texts = {name: outputs[name] for name in ("qwen_name", "clip_name", "task")}
    run("K5_LoadTextEncoders", **texts)
    size = {name: outputs[name] for name in ("width", "height", "length")}
    (latent,) = run("K5_EmptyLatent", **size, batch_size=1, model=model)
    assert latent["samples"].shape == (1, 16, 1, 16, 16)


def test_choices_connect_to_choices_and_texts_do_not(host):
    connects = host.module("comfy_execution.validation").validate_node_input
    outputs = {each.display_name: each for each in host.pack["K5_Preset"].define_schema().outputs}
    inputs = {
        f"{node}.{name}": host.pack[node].INPUT_TYPES()["required"][name][0]
        for node, name in (
            ("K5_LoadModel", "model_name"),
            ("K5_LoadModel", "weight_dtype"),
            ("K5_LoadVAE", "vae_name"),
            ("K5_LoadTextEncoders", "qwen_name"),
            ("K5_LoadTextEncoders", "clip_name"),
            ("K5_TextEncode", "task"),
        )
    }
    for name, kind in inputs.items():
        assert connects(outputs[name.split(".")[1]].io_type, kind)
    assert not connects(outputs["report"].io_type, inputs["K5_TextEncode.task"])
