"""Files that ComfyUI finds beside its own models folder, and models that are several files."""

from __future__ import annotations

import json
import shutil

import pytest
from safetensors import safe_open
from safetensors.torch import save_file

from kandinsky_core.nano import nano_path
from tooling.environment import ROOT

NANO_IMAGE = ROOT / "workflows" / "api" / "text_to_image_nano.json"


@pytest.fixture
def run_with(comfy):
    """Run nano's image workflow with other inputs of one loader; returns the files it made."""

    def run(node_type, **inputs):
        (schema,) = comfy.get(f"/object_info/{node_type}").values()
        for input_id, name in inputs.items():
            assert name in schema["input"]["required"][input_id][1]["options"]
        workflow = json.loads(NANO_IMAGE.read_text(encoding="utf-8"))
        (loader,) = (n for n in workflow.values() if n["class_type"] == node_type)
        loader["inputs"].update(inputs)
        (sampler,) = (n for n in workflow.values() if n["class_type"] == "K5_Sampler")
        sampler["inputs"]["seed"] = 5
        return comfy.run(workflow).files()

    return run


def test_files_of_extra_model_paths(extra_models, run_with):
    shutil.copy(nano_path("vae"), extra_models / "vae" / "elsewhere.safetensors")
    shutil.copy(
        nano_path("transformer"), extra_models / "diffusion_models" / "elsewhere.safetensors"
    )
    assert run_with("K5_LoadVAE", vae_name="elsewhere.safetensors")
    assert run_with("K5_LoadModel", model_name="elsewhere.safetensors")


def test_sharded_model_is_one_entry(comfy_server, run_with):
    folder = comfy_server.base / "models" / "diffusion_models" / "nano_in_two"
    folder.mkdir(parents=True)
    with safe_open(nano_path("transformer"), framework="pt") as file:
        metadata, names = file.metadata(), sorted(file.keys())
        halves = names[::2], names[1::2]
        for number, half in enumerate(halves, start=1):
            tensors = {name: file.get_tensor(name) for name in half}
            save_file(tensors, folder / f"model-{number:05d}-of-00002.safetensors", metadata)
    assert run_with("K5_LoadModel", model_name="nano_in_two")
