"""Loading and saving real (small) weights: exact, in any dtype, without a second copy."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from kandinsky_core.checkpoint import (
    describe_metadata,
    identify,
    load_text_encoder_nano,
    load_transformer,
    load_vae,
    open_checkpoint,
    save_checkpoint,
)
from kandinsky_core.errors import CheckpointError, OutputError
from kandinsky_core.family.config import ImageVAEConfig, NanoTextConfig, VideoVAEConfig
from kandinsky_core.family.variants import VARIANTS
from kandinsky_core.models import CrossDiT, ImageVAE, VideoVAE
from kandinsky_core.models.vae.keys import to_original_key
from kandinsky_core.text import NanoTextEncoder, save_nano_text_encoder


@pytest.fixture(scope="module")
def weights() -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    state = CrossDiT(VARIANTS["debug"]).state_dict()
    return {name: torch.randn_like(tensor) * 0.05 for name, tensor in state.items()}


def assert_same(network, state, dtype=torch.float32):
    loaded = network.state_dict()
    assert loaded.keys() == state.keys()
    for name, tensor in state.items():
        assert loaded[name].dtype == dtype
        assert torch.equal(loaded[name], tensor.to(dtype)), name


@pytest.mark.parametrize("prefix", ["", "model.diffusion_model.", "transformer."])
@pytest.mark.parametrize("stored", [torch.float32, torch.bfloat16, torch.float16])
def test_single_file(tmp_path, weights, prefix, stored):
    path = tmp_path / "model.safetensors"
    save_file({prefix + name: tensor.to(stored) for name, tensor in weights.items()}, path)
    network, info = load_transformer(path)
    assert_same(network, {k: v.to(stored) for k, v in weights.items()}, stored)
    assert info.dtype == stored
    assert not network.training
    assert not any(parameter.requires_grad for parameter in network.parameters())
    network, _ = load_transformer(path, dtype=torch.float32)
    assert_same(network, {k: v.to(stored) for k, v in weights.items()})
    config = VARIANTS["debug"]
    velocity = network(
        torch.randn(1, config.input_channels, 2, 4, 4),
        torch.tensor([0.5]),
        torch.randn(1, 3, config.text_dim),
        torch.randn(1, config.pooled_dim),
    )
    assert velocity.isfinite().all()


def test_shards(tmp_path, weights):
    folder = tmp_path / "transformer"
    folder.mkdir()
    names = list(weights)
    weight_map = {}
    for index in range(3):
        part = names[index::3]
        file = f"diffusion_pytorch_model-{index + 1:05}-of-00003.safetensors"
        save_file({name: weights[name] for name in part}, folder / file)
        weight_map |= dict.fromkeys(part, file)
    index_file = folder / "diffusion_pytorch_model.safetensors.index.json"
    index_file.write_text(json.dumps({"weight_map": weight_map}))
    for path in (tmp_path, folder, index_file):
        assert_same(load_transformer(path)[0], weights)


def test_tensors_by_name(tmp_path, weights):
    path = tmp_path / "model.safetensors"
    save_file({"diffusion_model." + name: tensor for name, tensor in weights.items()}, path)
    with open_checkpoint(path) as checkpoint:
        assert set(checkpoint) == set(weights)
        assert len(checkpoint) == len(weights)
        name = "out_layer.out_layer.weight"
        assert torch.equal(checkpoint[name], weights[name])
        with pytest.raises(KeyError):
            checkpoint["nothing"]


def test_what_was_identified_loads_as_its_file_does(tmp_path, weights):
    path = tmp_path / "model.safetensors"
    save_file(weights, path)
    info = identify(path)
    network, same = load_transformer(info)
    assert_same(network, weights)
    assert same is info
    with pytest.raises(CheckpointError, match=r"holds a transformer: expected a vae"):
        load_vae(info)
    with pytest.raises(CheckpointError, match=r"holds a transformer: expected a text encoder"):
        load_text_encoder_nano(info)


def test_every_mismatch_is_one_sentence(tmp_path, weights):
    path = tmp_path / "model.safetensors"
    bias = "visual_transformer_blocks.1.self_attention.to_query.bias"
    cases = [
        ({k: v for k, v in weights.items() if k != bias}, f"1 missing \\({bias}\\)"),
        (weights | {"other.a": torch.ones(1), "other.b": torch.ones(1)}, r"2 unexpected \(other"),
        (weights | {bias: torch.zeros(3)}, rf"1 wrongly shaped \({bias} is \(3,\) instead of \(64"),
        (weights | {bias + ".scale_weight": torch.ones(1)}, "1 unexpected"),
    ]
    for state, message in cases:
        save_file(state, path)
        with pytest.raises(CheckpointError, match=message) as error:
            load_transformer(path)
        assert path.name in str(error.value)
        assert "\n" not in str(error.value)


TINY_VIDEO = VideoVAEConfig(
    (8, 8, 16, 16), layers_per_block=1, latent_channels=4, norm_num_groups=4
)
TINY_IMAGE = ImageVAEConfig(
    (8, 8, 16, 16), layers_per_block=1, latent_channels=4, norm_num_groups=4
)


@pytest.mark.parametrize("layout", ["diffusers", "original"])
@pytest.mark.parametrize("kind", ["video", "image"])
def test_vae_layouts(tmp_path, kind, layout):
    network = VideoVAE(TINY_VIDEO) if kind == "video" else ImageVAE(TINY_IMAGE)
    state = stored = network.state_dict()
    if layout == "original":
        ones = (1, 1, 1) if kind == "video" else (1, 1)
        stored = {
            to_original_key(k, 4): v.reshape(*v.shape, *ones) if ".to_" in k and v.ndim == 2 else v
            for k, v in state.items()
        }
        assert "encoder.mid.attn_1.q.weight" in stored
    path = tmp_path / "vae.safetensors"
    save_checkpoint(path, stored, describe_metadata(network.config))
    loaded = load_vae(path)
    assert loaded.config == network.config
    assert_same(loaded, state)
    assert_same(load_vae(path, dtype=torch.bfloat16), state, torch.bfloat16)


def test_nano_text_encoder(tmp_path):
    words = ["red", "circle"]
    encoder = NanoTextEncoder(NanoTextConfig(vocab_size=5, dim=8, num_layers=1, max_len=4), words)
    path = tmp_path / "text_encoder.safetensors"
    save_nano_text_encoder(path, encoder)
    assert_same(load_text_encoder_nano(path), encoder.state_dict())
    clip = tmp_path / "clip.safetensors"
    name = "text_model.encoder.layers.0.self_attn.q_proj.weight"
    save_file({name: torch.zeros(2, 2)}, clip)
    with pytest.raises(CheckpointError, match="text encoder clip: expected nano's own"):
        load_text_encoder_nano(clip)


def test_save_and_identify_again(tmp_path, weights):
    path = tmp_path / "model.safetensors"
    metadata = describe_metadata(VARIANTS["debug"], task="t2v", stage="pretrain", note="привет")
    tied = weights | {"text_embeddings.in_layer.bias": weights["text_embeddings.norm.bias"]}
    tied["text_embeddings.norm.weight"] = torch.arange(128.0)[::2]
    save_checkpoint(path, tied, metadata)
    network, info = load_transformer(path)
    assert_same(network, tied)
    assert (info.task, info.stage, info.sources["task"]) == ("t2v", "pretrain", "metadata")
    with safe_open(path, "pt") as file:
        assert json.loads(file.metadata()["kandinsky_core"])["note"] == "привет"
    assert [file.name for file in tmp_path.iterdir()] == ["model.safetensors"]


def test_weights_survive_saving_over_their_file(tmp_path, weights):
    path = tmp_path / "model.safetensors"
    save_checkpoint(path, weights)
    network, _ = load_transformer(path)
    save_checkpoint(path, {name: tensor + 1 for name, tensor in network.state_dict().items()})
    assert_same(network, weights)
    assert_same(load_transformer(path)[0], {name: tensor + 1 for name, tensor in weights.items()})


def test_save_needs_a_folder(tmp_path, weights):
    with pytest.raises(OutputError, match=r"folder .*nowhere does not exist"):
        save_checkpoint(tmp_path / "nowhere" / "m.safetensors", weights)
    with pytest.raises(OutputError, match="it is a folder"):
        save_checkpoint(tmp_path, weights)
    encoder = NanoTextEncoder(NanoTextConfig(vocab_size=3, dim=8, num_layers=1, max_len=4), [])
    with pytest.raises(OutputError, match="it is a folder"):
        save_nano_text_encoder(tmp_path, encoder)


def run_python(code: str, *args: object) -> str:
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", textwrap.dedent(code), *map(str, args)]
    result = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert result.returncode == 0, result.stderr
    return result.stdout


@pytest.mark.skipif(not hasattr(os, "fork"), reason="file size limits are POSIX")
def test_no_room_leaves_the_old_file(tmp_path):
    path = tmp_path / "model.safetensors"
    save_checkpoint(path, {"a": torch.ones(2)})
    before = path.read_bytes()
    # a limit on the size of files stands in for a full disk: the same call fails the same way
    output = run_python(
        """
        import resource, signal, sys
        import numpy as np, torch
        from kandinsky_core.checkpoint import save_checkpoint
        from kandinsky_core.video import write_image, write_video
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
        noise = np.random.default_rng(0).integers(0, 255, (300, 300, 3), np.uint8)
        for write in (
            lambda: save_checkpoint(sys.argv[1], {"a": torch.ones(100_000)}),
            lambda: write_image(sys.argv[1].replace("safetensors", "png"), noise),
            lambda: write_video(sys.argv[1].replace("safetensors", "mp4"), [noise] * 8, crf=1),
        ):
            try:
                write()
            except ValueError as error:
                print(type(error).__name__, error)
        """,
        path,
    )
    lines = output.splitlines()
    assert len(lines) == 3
    for line in lines:
        assert line.startswith("OutputError"), line
        assert "nothing was changed" in line
    assert path.read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == ["model.safetensors"]


@pytest.mark.skipif(not Path("/proc/self/smaps").exists(), reason="reads /proc")
def test_no_second_copy(tmp_path):
    """Loads about 270 MB in a fresh process and watches its own (anonymous) memory."""
    config = replace(VARIANTS["debug"], model_dim=1024, ff_dim=4096, num_visual_blocks=3)
    config = replace(config, time_dim=256)
    network = CrossDiT(config, device="meta")
    path = tmp_path / "model.safetensors"
    state = {name: torch.zeros(1).expand(p.shape) for name, p in network.state_dict().items()}
    save_checkpoint(path, state, describe_metadata(config, task="t2v"))
    del state
    output = run_python(
        """
        import json, re, sys, threading, time
        from pathlib import Path
        import torch
        from kandinsky_core.checkpoint import load_transformer

        def own_memory():
            status = Path("/proc/self/status").read_text()
            return int(re.search(r"RssAnon:\\s+(\\d+)", status)[1]) / 1024

        def watch():
            while not done.is_set():
                peaks[-1] = max(peaks[-1], own_memory())
                time.sleep(0.002)

        path, results = sys.argv[1], {}
        load_transformer(path, device="meta")  # warm up
        for name, dtype in (("mapped", None), ("cast", torch.bfloat16)):
            start, peaks, done = own_memory(), [0.0], threading.Event()
            watcher = threading.Thread(target=watch)
            watcher.start()
            network, info = load_transformer(path, dtype=dtype)
            total = sum(p.sum().item() for p in network.parameters())  # touches every page
            done.set()
            watcher.join()
            peaks[-1] = max(peaks[-1], own_memory())
            results[name] = peaks[-1] - start
            if dtype is None:
                maps = Path("/proc/self/maps").read_text().splitlines()
                spans = [
                    [int(end, 16) for end in line.split()[0].split("-")]
                    for line in maps if line.endswith(path)
                ]
                results["in file"] = all(
                    any(low <= p.data_ptr() < high for low, high in spans)
                    for p in network.parameters()
                )
            del network
        results["size"] = Path(path).stat().st_size / 2**20
        print(json.dumps(results))
        """,
        path,
    )
    megabytes = json.loads(output)
    assert megabytes["size"] > 200
    assert megabytes["in file"]
    assert megabytes["mapped"] < 30
    # bf16 is half the file; the largest single tensor passes through
    assert megabytes["cast"] < megabytes["size"] / 2 + 60
