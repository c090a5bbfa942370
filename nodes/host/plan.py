"""What a job with these native objects will need, and what ComfyUI can free for it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import comfy.model_management
import psutil
import torch
from comfy.model_patcher import ModelPatcher

from ...kandinsky_core.family import SamplingSettings
from ...kandinsky_core.planning import USUAL_DENSITY, Job, text_size
from .attention.choice import chosen_attention
from .model.caching import has_cache
from .model.model import model_info
from .packed import packed_layers
from .vae import VAE


def make_job(
    model: ModelPatcher,
    latent: dict[str, Any],
    settings: SamplingSettings,
    *,
    clip: Any,
    vae: Any,
    guided: bool,
) -> Job:
    """Return the job of sampling a LATENT with a MODEL, its prompts and its decoding.

    Args:
        model: MODEL.
        latent: LATENT; only its shape counts.
        settings: What it is sampled with.
        clip: CLIP, or None for the encoders that belong to the model in bf16.
        vae: VAE, or None for the one that belongs to the model.
        guided: Whether a negative prompt is run too.

    Raises:
        ValueError: A part is not Kandinsky 5's, or the size does not divide into NABLA's tiles.
    """
    info = model_info(model)
    shape = latent["samples"].shape
    batch, _, *grid = shape if len(shape) == 5 else (*shape[:2], 1, *shape[2:])
    if vae is not None and not isinstance(vae, VAE):
        raise ValueError("vae: expected one from Load VAE (Kandinsky 5); found another.")
    options = model.model_options.get("transformer_options", {})
    nabla, _ = chosen_attention(options, settings, latent["samples"], info.config)
    space_vae = model.model.space.config if vae is None else vae.network.config
    size = tuple(side * space_vae.spatial_compression for side in grid[1:])
    task = info.main_task
    text = text_size(info.config, task, torch.bfloat16, size)
    if clip is not None:
        stored = clip.patcher.model_size()
        packed = packed_layers(clip.cond_stage_model).values()
        if packed:
            taken = 8 * sum(layer.weight.nbytes for layer in packed)
            numbers = sum(len(layer.weight) * layer.columns for layer in packed)
            text = text_size(info.config, task, torch.bfloat16, size, bits=taken / numbers)
        text = replace(
            text, weights=stored, least_weights=text.least_weights * stored // text.weights
        )
    dtype, bits = model.model.get_dtype(), None
    if packed_layers(model.model.diffusion_model):
        dtype, bits = torch.uint8, 8 * model.model_size() / info.num_parameters
    return Job(
        info.config,
        space_vae,
        text,
        task,
        tuple(grid),
        batch=batch,
        num_steps=settings.num_steps,
        guided=guided,
        dtype=dtype,
        bits_per_weight=bits,
        compute=model.model.manual_cast_dtype or model.model.get_dtype(),
        vae_dtype=_vae_dtype(model) if vae is None else vae.vae_dtype,
        nabla=nabla,
        density=1.0 if nabla is None else USUAL_DENSITY,
        cached=has_cache(model),
        device_type=model.load_device.type,
    )


def free_memory(model: ModelPatcher) -> int:
    """Return the bytes of the MODEL's device that are free, or would be if ComfyUI unloaded
    everything."""
    management, device = comfy.model_management, model.load_device
    free = management.get_free_memory(device)
    if device != torch.device("cpu"):  # there, what is unloaded takes as much as before
        loaded = getattr(management, "current_loaded_models", [])
        free += sum(
            each.model_loaded_memory()
            for each in loaded
            if each.device == device and each.model is not None
        )
    return int(free)


def free_main_memory(*parts: Any) -> int:
    """Return the bytes of main memory that are free, or that weights of these parts take there
    already.

    Args:
        *parts: MODEL, CLIP or VAE; None is left out.
    """
    patchers = [getattr(part, "patcher", part) for part in parts if part is not None]
    waiting = sum(patcher.model_size() - patcher.loaded_size() for patcher in patchers)
    # weights that are a memory-mapped file count as free; where the system does not say how much
    # of the process that is, all of it is taken for such
    process = psutil.Process().memory_info()
    held = process.rss - getattr(process, "shared", process.rss)
    free = comfy.model_management.get_free_memory(torch.device("cpu"))
    return int(free + min(waiting, held))


def _vae_dtype(model: ModelPatcher) -> torch.dtype:
    return comfy.model_management.vae_dtype(model.load_device, [torch.bfloat16, torch.float32])
