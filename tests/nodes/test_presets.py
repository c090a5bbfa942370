"""K5_Preset: values, names, and what its outputs connect to."""

from __future__ import annotations

import pytest

NAMES = ("steps", "cfg", "shift", "width", "height", "length", "fps", "negative")
NAMES += ("model_name", "task", "report")


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
    for words in ("kandinsky5pro_t2v_sft_10s", "HunyuanVideo's VAE", "P: 0.7 (checkpoint table)"):
        assert words in outputs["report"]


def test_every_choice_runs(host, preset):
    (choice, orientation) = host.pack["K5_Preset"].define_schema().inputs
    tasks = host.part("nodes.host").TASKS
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


def test_nano_runs_from_the_preset_alone(preset, run, load_model):
    outputs = preset("nano image")
    model = load_model(outputs["model_name"])
    size = {name: outputs[name] for name in ("width", "height", "length")}
    (latent,) = run("K5_EmptyLatent", **size, batch_size=1, model=model)
    assert latent["samples"].shape == (1, 16, 1, 16, 16)


def test_choices_connect_to_choices_and_texts_do_not(host):
    connects = host.module("comfy_execution.validation").validate_node_input
    outputs = {each.display_name: each for each in host.pack["K5_Preset"].define_schema().outputs}
    inputs = {
        f"{node}.{name}": host.pack[node].INPUT_TYPES()["required"][name][0]
        for node, name in (("K5_LoadModel", "model_name"), ("K5_TextEncode", "task"))
    }
    assert connects(outputs["model_name"].io_type, inputs["K5_LoadModel.model_name"])
    assert connects(outputs["task"].io_type, inputs["K5_TextEncode.task"])
    assert not connects(outputs["report"].io_type, inputs["K5_TextEncode.task"])
