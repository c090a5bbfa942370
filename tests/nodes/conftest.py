"""A real ComfyUI inside the test process: its model code, without its server."""

from __future__ import annotations

import asyncio
import importlib
import importlib.util
import os
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from kandinsky_core.checkpoint import describe_metadata, save_checkpoint
from kandinsky_core.family.config import DiTConfig
from kandinsky_core.models import CrossDiT
from tooling import comfyui, environment

from .partial import PartialLoading

PACK = Path(os.environ.get("KANDINSKY5_PACK", environment.ROOT))
PACKAGE = "kandinsky5_pack"
NANO = "nano (bundled)"
TINY = DiTConfig(64, 128, 32, 1, 1, (16, 24, 24), text_dim=128, pooled_dim=128)


@pytest.fixture(scope="session")
def host(tmp_path_factory):
    """Yield the host's modules and the pack, loaded by path as ComfyUI loads it.

    `host.pack` maps the pack's ids to node classes, `host.native` is the module of native nodes,
    `host.extra(name)` one of comfy_extras, `host.part(name)` a module of the pack.
    """
    base = tmp_path_factory.mktemp("base")
    for name in ("diffusion_models", "text_encoders", "vae", "loras"):
        (base / "models" / name).mkdir(parents=True)
    (base / "input").mkdir()
    path = str(comfyui.obtain())
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    sys.path.insert(0, path)
    try:
        arguments = importlib.import_module("comfy.cli_args").args
        arguments.cpu = True
        arguments.base_directory = str(base)
        folder_paths = importlib.import_module("folder_paths")
        folder_paths.add_model_folder_path(
            "diffusion_models", str(base / "output" / "diffusion_models")
        )
        native = importlib.import_module("nodes")
        spec = importlib.util.spec_from_file_location(
            PACKAGE, PACK / "__init__.py", submodule_search_locations=[str(PACK)]
        )
        package = importlib.util.module_from_spec(spec)
        sys.modules[PACKAGE] = package
        spec.loader.exec_module(package)
        # in a thread of its own: the browser tests leave an event loop running in this one
        with ThreadPoolExecutor(1) as loop:
            extension = loop.submit(asyncio.run, package.comfy_entrypoint()).result()
            nodes = loop.submit(asyncio.run, extension.get_node_list()).result()
        yield SimpleNamespace(
            base=base,
            path=Path(path),
            native=native,
            pack={node.define_schema().node_id: node for node in nodes},
            extra=lambda name: importlib.import_module(f"comfy_extras.{name}"),
            part=lambda name: importlib.import_module(f"{PACKAGE}.{name}"),
            module=importlib.import_module,
        )
    finally:
        sys.path.remove(path)
        torch.set_num_threads(threads)


@pytest.fixture(autouse=True)
def inference_mode():
    """ComfyUI runs every node so."""
    with torch.inference_mode():
        yield


@pytest.fixture(scope="session")
def run(host):
    """Call a node of the pack: `run("K5_LoadModel", model_name=...)` -> tuple of outputs."""

    def call(node_id, **inputs):
        with torch.inference_mode():
            return host.pack[node_id].execute(**inputs).result

    return call


@pytest.fixture(scope="session")
def load_model(run):
    """Load a MODEL by its name in the loader's list."""

    def load(name=NANO, weight_dtype="default"):
        return run("K5_LoadModel", model_name=name, weight_dtype=weight_dtype)[0]

    return load


@pytest.fixture(scope="session")
def model(load_model):
    """Return the bundled transformer."""
    return load_model()


@pytest.fixture(scope="session")
def clip(run):
    """Return the bundled text encoder."""
    return run("K5_LoadTextEncoders", qwen_name=NANO, clip_name="(none)", task="t2v")[0]


@pytest.fixture(scope="session")
def vae(run):
    """Return the bundled VAE."""
    return run("K5_LoadVAE", vae_name=NANO)[0]


@pytest.fixture(scope="session")
def save_tiny(host):
    """Save a random one-block transformer that reads nano's text; returns its name."""

    def save(name, config, task, **facts):
        torch.manual_seed(0)
        with torch.inference_mode(False):
            network = CrossDiT(config)
            for key, parameter in network.named_parameters():
                if "modulation" in key:
                    torch.nn.init.normal_(parameter, std=0.2)
        path = host.base / "models" / "diffusion_models" / name
        save_checkpoint(path, network.state_dict(), describe_metadata(config, task=task, **facts))
        return name

    return save


@pytest.fixture(scope="session")
def tiny_config():
    """Dimensions of the random transformer."""
    return TINY


@pytest.fixture(scope="session")
def tiny_file(save_tiny):
    """Return a video model, for what need not be nano."""
    return save_tiny("tiny.safetensors", TINY, "t2v")


@pytest.fixture(scope="session")
def tiny_image_model(save_tiny, load_model):
    """Return a text-to-image model: no condition channels, FLUX's latent space."""
    return load_model(save_tiny("tiny_image.safetensors", replace(TINY, visual_cond=False), "t2i"))


@pytest.fixture(scope="session")
def small_tower(host):
    """Return a small vision tower of the host's own class, whose loader makes one size only.

    `small_tower(weights, sizes)` takes the weights of transformers' tower and its config.
    """

    def make(weights, sizes):
        tower = host.module("comfy.text_encoders.qwen_vl").Qwen2VLVisionTransformer(
            hidden_size=sizes["hidden_size"],
            output_hidden_size=sizes["out_hidden_size"],
            intermediate_size=sizes["intermediate_size"],
            num_heads=sizes["num_heads"],
            num_layers=sizes["depth"],
            ops=host.module("comfy.ops").manual_cast,
        )
        tower.fullatt_block_indexes = sizes["fullatt_block_indexes"]
        tower.load_state_dict(weights, strict=True)
        return tower

    return make


@pytest.fixture(scope="session")
def give_sight(small_tower):
    """Put a small vision tower into a CLIP of ours: `give_sight(clip, weights, sizes)`."""

    def call(clip, weights, sizes):
        clip.cond_stage_model.qwen.transformer.visual = small_tower(weights, sizes)
        clip.cond_stage_model.sees = True
        clip.patcher.size = 0  # that of the large tower; the host counts anew
        return clip

    return call


@pytest.fixture
def partially(host, monkeypatch):
    """Let whatever runs next load a part of its model only; see `PartialLoading`."""
    loading = PartialLoading(host, monkeypatch)
    yield loading
    loading.end()


@pytest.fixture
def prompts(clip, run):
    """Positive and negative conditioning of different lengths."""
    texts = ("a red circle moves right", "")
    return [run("K5_TextEncode", clip=clip, text=text, task="t2v")[0] for text in texts]


@pytest.fixture
def latent(run):
    """Return an empty latent of 5 frames of 64 x 64 pixels."""
    return run("K5_EmptyLatent", width=64, height=64, length=5, batch_size=1)[0]


@pytest.fixture
def sample(run, prompts, latent):
    """Run our sampler on the small latent; returns the samples."""

    def call(model, **inputs):
        defaults = {
            "positive": prompts[0],
            "negative": prompts[1],
            "latent": latent,
            "seed": 7,
            "cfg": 3.0,
            "steps": 4,
            "shift": 0.0,
            "denoise": 1.0,
        }
        return run("K5_Sampler", model=model, **(defaults | inputs))[0]["samples"]

    return call


@pytest.fixture
def ksample(host, prompts, latent):
    """Run native KSampler with euler and simple as `sample` runs ours."""

    def call(model, *, steps=4, denoise=1.0, **inputs):
        given = {"positive": prompts[0], "negative": prompts[1], "latent": latent} | inputs
        (out,) = host.native.KSampler().sample(
            model,
            7,
            steps,
            3.0,
            "euler",
            "simple",
            given["positive"],
            given["negative"],
            given["latent"],
            denoise=denoise,
        )
        return out["samples"]

    return call
