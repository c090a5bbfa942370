"""The nano model end to end, and loading: what a user waits for."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from mmap import PAGESIZE
from pathlib import Path

import torch
from diffusers import Kandinsky5T2VPipeline, Kandinsky5Transformer3DModel

from kandinsky_core.checkpoint import describe_metadata, load_transformer, save_checkpoint
from kandinsky_core.family.config import DiTConfig, VideoVAEConfig
from kandinsky_core.family.settings import SamplingSettings
from kandinsky_core.family.variants import VARIANTS
from kandinsky_core.generate import GenerateRequest, generate
from kandinsky_core.nano import nano_path
from kandinsky_core.pipeline import Pipeline, identify_model, load_pipeline

from . import vae
from .case import Case, Goal
from .meter import Run
from .reference import FixedText, build_pair, build_upstream_pipeline, run_upstream

PROMPT = "a red circle moves to the right"
LOADED = DiTConfig(1024, 4096, 512, 2, 12, (16, 24, 24))
"""About 330 million parameters: loading is then bytes and not bookkeeping."""


def nano_clip(device: torch.device) -> dict[str, Run]:
    """Return a default clip of the bundled model; and its sampling alone, with diffusers'
    network."""
    pipeline = load_pipeline("nano", device=device)
    path = nano_path("transformer")
    transformer, _ = load_transformer(path, dtype=torch.float32, device=device)
    _, theirs = build_pair(transformer.config, torch.float32, device)
    theirs.load_state_dict(transformer.state_dict())
    text = pipeline.text_encoder.encode([PROMPT, ""])
    settings = pipeline.settings
    height, width = settings.default_size
    frames = (settings.num_frames - 1) // 4 + 1
    x = torch.randn(1, transformer.config.input_channels, frames, height // 8, width // 8)
    x, t = x.to(device), torch.tensor([0.7], device=device)
    tokens, pooled = text.tokens.to(device), text.pooled.to(device)

    def steps(network: Callable[..., object]) -> None:
        for _ in range(settings.num_steps):
            for row in range(2):
                network(x, t, tokens[row : row + 1], pooled[row : row + 1])

    request = GenerateRequest(PROMPT)
    return {
        "diffusers' network, all steps": torch.no_grad()(
            partial(steps, partial(run_upstream, theirs))
        ),
        "our network, all steps": torch.no_grad()(partial(steps, transformer)),
        "whole clip, decoded": lambda: list(generate(pipeline, request).frames()),
    }


def pipelines(
    settings: SamplingSettings, vae_config: VideoVAEConfig, device: torch.device
) -> dict[str, Run]:
    """Return a clip by both pipelines, from encoded text to frames, in nano's dimensions."""
    config = VARIANTS["nano"]
    transformer, their_transformer = build_pair(config, torch.float32, device)
    our_vae, their_vae = vae.build_pair(vae_config, torch.float32, device)
    text = FixedText(config.text_dim, config.pooled_dim, device)
    ours = Pipeline(transformer, text, our_vae, replace(settings, negative_prompt="bad"))
    theirs = build_upstream_pipeline(
        Kandinsky5T2VPipeline, their_transformer, their_vae, settings.shift
    )
    height, width = settings.default_size
    return {
        "diffusers": partial(
            theirs,
            height=height,
            width=width,
            num_frames=settings.num_frames,
            num_inference_steps=settings.num_steps,
            guidance_scale=settings.guidance_scale,
            output_type="np",
            **text.upstream_arguments(),
        ),
        "ours": lambda: list(generate(ours, GenerateRequest("good")).frames()),
    }


def read_pages(model: torch.nn.Module) -> None:
    """Read a byte of every page: a mapped file is in memory only once it was looked at."""
    for parameter in model.parameters():
        octets = parameter.detach().flatten().view(torch.uint8)
        octets[::PAGESIZE].sum()
        octets[-1].item()  # the page on which the last stride did not land


def loading(config: DiTConfig, device: torch.device) -> dict[str, Run]:
    """Return a transformer from disk to the device in bf16, from the page cache, all of it read."""
    folder = tempfile.TemporaryDirectory()  # both candidates hold on to it
    ours, theirs = build_pair(config, torch.bfloat16)
    theirs.save_pretrained(folder.name)
    # the same tensors, in a file that says its own dimensions: it is none of the released sizes
    path = Path(folder.name) / "ours.safetensors"
    save_checkpoint(path, ours.state_dict(), describe_metadata(config, task="t2v"))
    del ours, theirs

    def load_theirs() -> None:
        model = Kandinsky5Transformer3DModel.from_pretrained(
            folder.name, torch_dtype=torch.bfloat16
        )
        read_pages(model.to(device))

    def load_ours() -> None:
        read_pages(load_transformer(path, device=device)[0])

    return {"diffusers": load_theirs, "ours": load_ours}


def cases(quick: bool, device: torch.device) -> Iterator[Case]:
    """Yield a clip of the bundled model, one by both pipelines, and loading."""
    if not quick:
        yield Case(
            "family",
            "nano, 128 x 128, 17 frames, 16 steps with guidance, fp32",
            partial(nano_clip, device),
            (Goal("our network, all steps", "diffusers' network, all steps", 1.25, 1.08),),
            repeats=5,
        )
    settings, vae_config = identify_model("nano").settings, vae.SMALL
    assert settings is not None, "identify_model finds transformers only"
    if quick:
        settings = replace(settings, num_steps=2, sizes=((32, 32),), num_frames=5)
        vae_config = replace(vae_config, block_out_channels=vae.TOY_WIDTHS)
    height, width = settings.default_size
    yield Case(
        "family",
        f"whole pipelines, nano's dimensions, {height} x {width}, {settings.num_frames} frames, "
        f"{settings.num_steps} steps with guidance, HunyuanVideo's VAE at "
        f"{'toy' if quick else 'quarter'} width, fp32",
        partial(pipelines, settings, vae_config, device),
        repeats=3,
    )
    config = DiTConfig(64, 128, 32, 1, 2, (8, 12, 12)) if quick else LOADED
    yield Case(
        "family",
        "load a transformer, bf16" + (" (toy)" if quick else ", 0.3 B parameters"),
        partial(loading, config, device),
        (Goal("ours", "diffusers", 1.0, 1.0, memory=True),),
        repeats=5,
    )
