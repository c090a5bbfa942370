"""Shared by the parity tests: the same random weights in our network and in diffusers'."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from diffusers import Kandinsky5Transformer3DModel
from diffusers.models.transformers import transformer_kandinsky as upstream

from kandinsky_core.config import DiTConfig
from kandinsky_core.models import CrossDiT


def build_upstream(config: DiTConfig) -> Kandinsky5Transformer3DModel:
    return Kandinsky5Transformer3DModel(
        in_visual_dim=config.latent_channels,
        out_visual_dim=config.latent_channels,
        in_text_dim=config.text_dim,
        in_text_dim2=config.pooled_dim,
        time_dim=config.time_dim,
        patch_size=config.patch_thw,
        model_dim=config.model_dim,
        ff_dim=config.ff_dim,
        num_text_blocks=config.num_text_blocks,
        num_visual_blocks=config.num_visual_blocks,
        axes_dims=config.axes_dims,
        visual_cond=config.visual_cond,
    )


def shared_pair(config: DiTConfig) -> tuple[CrossDiT, Kandinsky5Transformer3DModel]:
    """Our network and diffusers' with the same random weights, modulation included."""
    torch.manual_seed(0)
    ours = CrossDiT(config).eval()
    for param in ours.parameters():
        if param.ndim > 1:
            torch.nn.init.normal_(param, std=0.7 * param.shape[1] ** -0.5)
        else:
            torch.nn.init.normal_(param, mean=float(param.mean() > 0.5), std=0.1)
    theirs = build_upstream(config).eval()
    theirs.load_state_dict(ours.state_dict(), strict=True)
    return ours, theirs


@pytest.fixture
def upstream_model() -> Callable[[DiTConfig], Kandinsky5Transformer3DModel]:
    """Builds diffusers' network from our config."""
    return build_upstream


@pytest.fixture
def make_pair() -> Callable[[DiTConfig], tuple[CrossDiT, Kandinsky5Transformer3DModel]]:
    """Builds both networks with shared weights."""
    return shared_pair


@pytest.fixture
def keep_fp32_rotation(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neutralise diffusers' rounding of queries and keys to bf16 after RoPE.

    The rounding is `.to(torch.bfloat16)` inside a closure, so the name `bfloat16` that the
    module sees is pointed at float32.
    """

    class Torch:
        bfloat16 = torch.float32

        def __getattr__(self, name: str) -> object:
            return getattr(torch, name)

    monkeypatch.setattr(upstream, "torch", Torch())


@pytest.fixture(scope="session")
def tokenizer_folders() -> dict[str, Path]:
    """The two tokenizers in a ComfyUI checkout."""
    cached = Path(__file__).resolve().parents[2] / ".cache" / "comfyui"
    host = Path(os.environ.get("COMFYUI_PATH") or cached)
    folders = {
        "qwen_tokenizer": host / "comfy" / "text_encoders" / "qwen25_tokenizer",
        "clip_tokenizer": host / "comfy" / "sd1_tokenizer",
    }
    missing = [str(folder) for folder in folders.values() if not folder.is_dir()]
    if missing:
        pytest.skip(f"no tokenizers at {', '.join(missing)}: set COMFYUI_PATH or run make comfy")
    return folders
