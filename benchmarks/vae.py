"""Autoencoders against diffusers' with the same weights and the same tiles."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from diffusers import AutoencoderKL, AutoencoderKLHunyuanVideo

from kandinsky_core.family.config import ImageVAEConfig, VideoVAEConfig
from kandinsky_core.models import ImageVAE, VideoVAE

from .case import Case, Goal
from .meter import Run
from .reference import CPU

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
SMALL = VideoVAEConfig(block_out_channels=(32, 64, 128, 128))
"""The released structure at a quarter of its width, so that a reading takes seconds."""
SMALL_IMAGE = ImageVAEConfig(block_out_channels=(32, 64, 128, 128))
"""FLUX's structure, likewise."""
LATENT_THW = (5, 16, 24)
"""One tile of 17 frames of 128 x 192 pixels."""
IMAGE_LATENT_THW = (1, 32, 48)
"""256 x 384 pixels."""
TOY_WIDTHS = (32, 32, 32, 32)
FLUX_SHIFT = 0.1159
"""What FLUX's own file says; Kandinsky 5 leaves it out, and so do diffusers' pipelines of it."""


def build_upstream(
    config: VideoVAEConfig | ImageVAEConfig,
) -> AutoencoderKLHunyuanVideo | AutoencoderKL:
    """diffusers' autoencoder in our dimensions, with weights of its own."""
    common: dict[str, Any] = {
        "latent_channels": config.latent_channels,
        "block_out_channels": config.block_out_channels,
        "layers_per_block": config.layers_per_block,
        "norm_num_groups": config.norm_num_groups,
        "scaling_factor": config.scaling_factor,
    }
    if isinstance(config, VideoVAEConfig):
        return AutoencoderKLHunyuanVideo(
            **common, mid_block_add_attention=config.mid_block_attention
        )
    stages = len(config.block_out_channels)
    return AutoencoderKL(
        **common,
        down_block_types=("DownEncoderBlock2D",) * stages,
        up_block_types=("UpDecoderBlock2D",) * stages,
        shift_factor=FLUX_SHIFT,
        use_quant_conv=False,
        use_post_quant_conv=False,
    )


def build_pair(
    config: VideoVAEConfig | ImageVAEConfig,
    dtype: torch.dtype = torch.float32,
    device: torch.device = CPU,
) -> tuple[VideoVAE | ImageVAE, AutoencoderKLHunyuanVideo | AutoencoderKL]:
    """Ours and diffusers' with the same random weights."""
    torch.manual_seed(0)
    theirs = build_upstream(config)
    ours = VideoVAE(config) if isinstance(config, VideoVAEConfig) else ImageVAE(config)
    ours.load_state_dict(theirs.state_dict())
    ours = ours.to(device, dtype).eval().requires_grad_(False)
    return ours, theirs.to(device, dtype).eval().requires_grad_(False)


def decode(
    config: VideoVAEConfig | ImageVAEConfig,
    thw: tuple[int, int, int],
    dtype: torch.dtype,
    device: torch.device,
) -> dict[str, Run]:
    """Turn latents into pixels, one tile."""
    ours, theirs = build_pair(config, dtype, device)
    latents = torch.randn(1, config.latent_channels, *thw).to(device, dtype)
    # diffusers' autoencoder of images knows no axis of time
    as_theirs = latents if isinstance(config, VideoVAEConfig) else latents[:, :, 0]
    return {
        "diffusers": torch.no_grad()(lambda: theirs.decode(as_theirs)),
        "ours": torch.no_grad()(partial(ours.decode, latents)),
    }


def encode(
    config: VideoVAEConfig, thw: tuple[int, int, int], dtype: torch.dtype, device: torch.device
) -> dict[str, Run]:
    """Turn pixels into latents, one tile."""
    ours, theirs = build_pair(config, dtype, device)
    t, h, w = thw
    pixels = torch.rand(1, 3, 4 * (t - 1) + 1, 8 * h, 8 * w).to(device, dtype) * 2 - 1
    return {
        "diffusers": torch.no_grad()(lambda: theirs.encode(pixels)),
        "ours": torch.no_grad()(partial(ours.encode, pixels)),
    }


def cases(quick: bool, device: torch.device) -> Iterator[Case]:
    """Yield decoding and encoding of clips, decoding of images, in both dtypes."""
    config = replace(SMALL, block_out_channels=TOY_WIDTHS) if quick else SMALL
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
            repeats=3,
        )
        yield Case(
            "vae",
            f"encode {size}, {name}",
            partial(encode, config, thw, dtype, device),
            repeats=3,
        )
    image = replace(SMALL_IMAGE, block_out_channels=TOY_WIDTHS) if quick else SMALL_IMAGE
    image_thw = (1, 4, 4) if quick else IMAGE_LATENT_THW
    _, h, w = image_thw
    for name, dtype in DTYPES.items():
        yield Case(
            "vae",
            f"decode an image of {8 * h} x {8 * w}, FLUX's VAE at quarter width, {name}",
            partial(decode, image, image_thw, dtype, device),
            repeats=5,
        )
