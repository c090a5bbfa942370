"""What a creator can get wrong: each gives one sentence on the node, and the server goes on."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import save_file

from kandinsky_core.checkpoint import describe_metadata, save_checkpoint
from kandinsky_core.family.config import ImageVAEConfig
from kandinsky_core.models import ImageVAE
from tooling.client import NodeError
from tooling.environment import ROOT

NANO = ROOT / "workflows" / "api" / "text_to_video_nano.json"


@pytest.fixture
def broken(comfy, comfy_server):
    """Run the nano workflow with one input changed; returns the error, and proves life after it."""

    def run(node_type, **inputs):
        workflow = json.loads(NANO.read_text(encoding="utf-8"))
        (node,) = (n for n in workflow.values() if n["class_type"] == node_type)
        node["inputs"].update(inputs)
        with pytest.raises(NodeError) as caught:
            comfy.run(workflow)
        assert comfy_server.running()
        picture = {
            "1": {
                "class_type": "EmptyImage",
                "inputs": {"width": 16, "height": 16, "batch_size": 1, "color": 0},
            },
            "2": {"class_type": "PreviewImage", "inputs": {"images": ["1", 0]}},
        }
        assert comfy.run(picture).files()
        return caught.value

    return run


@pytest.fixture
def put(comfy_server):
    """Write a file into one of the server's model folders; returns its name there."""
    written = []

    def write(folder, name, content):
        path = comfy_server.base / "models" / folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        written.append(path)
        if isinstance(content, bytes):
            path.write_bytes(content)
        else:
            save_file(content, path)
        return name

    yield write
    for path in written:
        path.unlink()


def one_sentence(error, node_type, *words):
    assert error.node_type == node_type
    assert "\n" not in error.message and "Traceback" not in error.message
    for word in words:
        assert word in error.message, error.message


def test_unknown_file(broken):
    error = broken("K5_LoadModel", model_name="no_such_file.safetensors")
    one_sentence(error, "K5_LoadModel", "model_name", "no_such_file.safetensors")


@pytest.mark.parametrize(
    ("folder", "node_type", "input_id"),
    [
        ("diffusion_models", "K5_LoadModel", "model_name"),
        ("vae", "K5_LoadVAE", "vae_name"),
        ("text_encoders", "K5_LoadTextEncoders", "qwen_name"),
    ],
)
def test_text_file_renamed_to_safetensors(broken, put, folder, node_type, input_id):
    name = put(folder, "renamed.safetensors", b"<html>not found</html>")
    one_sentence(broken(node_type, **{input_id: name}), node_type, name)


def test_checkpoint_of_another_model(broken, put):
    other = {"blocks.0.attn.to_q.weight": torch.zeros(8, 8), "head.bias": torch.zeros(8)}
    name = put("diffusion_models", "other_model.safetensors", other)
    one_sentence(broken("K5_LoadModel", model_name=name), "K5_LoadModel", name)


def test_size_that_does_not_fit(broken):
    error = broken("K5_EmptyLatent", length=18)
    one_sentence(error, "K5_EmptyLatent", "17", "21")


def test_vae_of_another_model(broken, put):
    other = {"decoder.conv_in.weight": torch.zeros(8, 4, 3, 3)}
    name = put("vae", "other_vae.safetensors", other)
    one_sentence(broken("K5_LoadVAE", vae_name=name), "K5_LoadVAE", name)


def test_vae_that_the_model_was_not_trained_with(broken, comfy_server):
    config = ImageVAEConfig((8, 8, 8, 8), layers_per_block=1, norm_num_groups=4)
    path = comfy_server.base / "models" / "vae" / "image_vae.safetensors"
    path.parent.mkdir(parents=True, exist_ok=True)
    save_checkpoint(path, ImageVAE(config).state_dict(), describe_metadata(config))
    try:
        error = broken("K5_LoadVAE", vae_name=path.name)
    finally:
        path.unlink()
    one_sentence(error, "K5_Decode", "nano", "FLUX")
