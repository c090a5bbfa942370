"""A real ComfyUI inside the test process: its model code, without its server."""

from __future__ import annotations

import asyncio
import importlib
import importlib.util
import logging
import os
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from tooling import comfyui, environment

PACK = Path(os.environ.get("KANDINSKY5_PACK", environment.ROOT))
PACKAGE = "kandinsky5_pack"


@pytest.fixture(scope="session")
def host(tmp_path_factory):
    """The host's modules and the pack, loaded by path as ComfyUI loads it.

    `host.nodes` maps ids of native nodes to classes, `host.pack` the pack's ids to classes.
    """
    base = tmp_path_factory.mktemp("base")
    for name in ("input", "output", "models/diffusion_models", "models/vae", "models/loras"):
        (base / name).mkdir(parents=True)
    path = str(comfyui.obtain())
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    sys.path.insert(0, path)
    try:
        arguments = importlib.import_module("comfy.cli_args").args
        arguments.cpu = True
        arguments.base_directory = str(base)
        modules = {
            name: importlib.import_module(module)
            for name, module in {
                "folder_paths": "folder_paths",
                "native": "nodes",
                "management": "comfy.model_management",
                "samplers": "comfy.samplers",
                "sample": "comfy.sample",
                "utils": "comfy.utils",
            }.items()
        }
        spec = importlib.util.spec_from_file_location(
            PACKAGE, PACK / "__init__.py", submodule_search_locations=[str(PACK)]
        )
        package = importlib.util.module_from_spec(spec)
        sys.modules[PACKAGE] = package
        spec.loader.exec_module(package)
        extension = asyncio.run(package.comfy_entrypoint())
        pack = {
            node.define_schema().node_id: node for node in asyncio.run(extension.get_node_list())
        }
        yield SimpleNamespace(
            base=base,
            pack=pack,
            package=package,
            extra=lambda name: importlib.import_module(f"comfy_extras.{name}"),
            **modules,
        )
    finally:
        sys.path.remove(path)
        torch.set_num_threads(threads)


@pytest.fixture(autouse=True)
def inference_mode():
    """ComfyUI runs every node so."""
    with torch.inference_mode():
        yield


@pytest.fixture
def run(host):
    """Call a node of the pack: `run("K5_LoadModel", model_name=...)` -> tuple of outputs."""

    def call(node_id, **inputs):
        node = host.pack[node_id]
        return node.execute(**inputs).result

    return call


@pytest.fixture(scope="session")
def nano(host):
    """The bundled model, text encoder and VAE, loaded by their nodes."""
    logging.getLogger().setLevel(logging.WARNING)
    with torch.inference_mode():
        name = "nano (bundled)"
        model = host.pack["K5_LoadModel"].execute(model_name=name, weight_dtype="default")
        clip = host.pack["K5_LoadTextEncoders"].execute(
            qwen_name=name, clip_name="(none)", task="t2v"
        )
        vae = host.pack["K5_LoadVAE"].execute(vae_name=name)
    return SimpleNamespace(model=model.result[0], clip=clip.result[0], vae=vae.result[0])


@pytest.fixture
def prompts(nano, run):
    """Positive and negative conditioning of different lengths."""
    texts = ("a red circle moves right", "")
    return [run("K5_TextEncode", clip=nano.clip, text=text, task="t2v")[0] for text in texts]


@pytest.fixture
def latent(run):
    """An empty latent of 5 frames of 64 x 64 pixels."""
    return run("K5_EmptyLatent", width=64, height=64, length=5, batch_size=1)[0]
