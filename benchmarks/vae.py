"""Autoencoders against diffusers' with the same weights and the same tiles."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import partial

import torch
from diffusers import AutoencoderKLHunyuanVideo

from kandinsky_core.config import VideoVAEConfig
from kandinsky_core.models import VideoVAE

from .case import Case, Goal
from .meter import Run

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
SMALL = VideoVAEConfig(block_out_channels=(32, 64, 128, 128))
"""The released structure at a quarter of its width, so that a reading takes seconds."""
LATENT_THW = (5, 16, 24)
"""One tile of 17 frames of 128 x 192 pixels."""


def build_pair(
    config: VideoVAEConfig, dtype: torch.dtype, device: torch.device
) -> tuple[VideoVAE, AutoencoderKLHunyuanVideo]:
    """Ours and diffusers' with the same random weights."""
    torch.manual_seed(0)
    theirs = AutoencoderKLHunyuanVideo(
        latent_channels=config.latent_channels,
        block_out_channels=config.block_out_channels,
        layers_per_block=config.layers_per_block,
        norm_num_groups=config.norm_num_groups,
        mid_block_add_attention=config.mid_block_attention,
    )
    ours = VideoVAE(config)
    ours.load_state_dict(theirs.state_dict())
    ours = ours.to(device, dtype).eval().requires_grad_(False)
    return ours, theirs.to(device, dtype).eval().requires_grad_(False)


def decode(
    config: VideoVAEConfig, thw: tuple[int, int, int], dtype: torch.dtype, device: torch.device
) -> dict[str, Run]:
    """Latents to pixels, one tile."""
    ours, theirs = build_pair(config, dtype, device)
    latents = torch.randn(1, config.latent_channels, *thw).to(device, dtype)
    return {
        "diffusers": torch.no_grad()(lambda: theirs.decode(latents)),
        "ours": torch.no_grad()(partial(ours.decode, latents)),
    }


def encode(
    config: VideoVAEConfig, thw: tuple[int, int, int], dtype: torch.dtype, device: torch.device
) -> dict[str, Run]:
    """Pixels to latents, one tile."""
    ours, theirs = build_pair(config, dtype, device)
    t, h, w = thw
    pixels = torch.rand(1, 3, 4 * (t - 1) + 1, 8 * h, 8 * w).to(device, dtype) * 2 - 1
    return {
        "diffusers": torch.no_grad()(lambda: theirs.encode(pixels)),
        "ours": torch.no_grad()(partial(ours.encode, pixels)),
    }


def cases(quick: bool, device: torch.device) -> Iterator[Case]:
    """Decoding and encoding, both dtypes."""
    config = replace(SMALL, block_out_channels=(32, 32, 32, 32)) if quick else SMALL
    thw = (2, 4, 4) if quick else LATENT_THW
    t, h, w = thw
    size = f"{4 * (t - 1) + 1} frames of {8 * h} x {8 * w}, quarter width"
    goals = {"fp32": (1.2, 1.0), "bf16": (2.0, 1.4)}
    for name, dtype in DTYPES.items():
        yield Case(
            "vae",
            f"decode {size}, {name}",
            partial(decode, config, thw, dtype, device),
            (
                Goal("ours", "diffusers", *goals[name]),
                Goal("ours", "diffusers", 1.0, 1.0, memory=True),
            ),
            repeats=5,
        )
        yield Case(
            "vae",
            f"encode {size}, {name}",
            partial(encode, config, thw, dtype, device),
            repeats=5,
        )
