"""Shared by the parity tests: the same random weights in our network and in diffusers'."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from diffusers import Kandinsky5Transformer3DModel
from diffusers.models.transformers import transformer_kandinsky as upstream
from torch import Tensor

from kandinsky_core.family.config import DiTConfig
from kandinsky_core.models import CrossDiT


@pytest.fixture
def upstream_model(benchmark) -> Callable[[DiTConfig], Kandinsky5Transformer3DModel]:
    """Build diffusers' network from our config."""
    return benchmark("reference").build_upstream


@pytest.fixture
def make_pair(benchmark) -> Callable[[DiTConfig], tuple[CrossDiT, Kandinsky5Transformer3DModel]]:
    """Build both networks with shared weights."""
    return benchmark("reference").build_pair


@pytest.fixture
def run_upstream(benchmark) -> Callable[..., Tensor]:
    """Call diffusers' network with the arguments that ours takes."""
    return benchmark("reference").run_upstream


@pytest.fixture
def upstream_nabla(benchmark, monkeypatch: pytest.MonkeyPatch) -> None:
    """Compute diffusers' NABLA from the mask that it asks for.

    Its own attention does not run it on a CPU: flex attention refuses or ignores the mask.
    """
    monkeypatch.setattr(upstream, "dispatch_attention_fn", benchmark("reference").attend_to_mask)


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
    """Return the two tokenizers in a ComfyUI checkout."""
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
