"""Checkpoints to MODEL: the dtype weights are kept in, and the layers for scaled fp8 and GGUF."""

from __future__ import annotations

import inspect
import logging
from pathlib import Path

import comfy.model_management
import comfy.ops
import torch
from comfy.model_patcher import ModelPatcher

from ....kandinsky_core.checkpoint import (
    Checkpoint,
    CheckpointInfo,
    assign_weights,
    open_checkpoint,
)
from ..latents import space_of_transformer
from ..packed import PackedPatcher
from .model import Kandinsky5, ModelConfig

WEIGHT_DTYPES: dict[str, torch.dtype | None] = {
    "default": None,
    "fp8_e4m3fn": torch.float8_e4m3fn,
    "fp8_e5m2": torch.float8_e5m2,
    "bf16": torch.bfloat16,
    "fp16": torch.float16,
    "fp32": torch.float32,
}
"""Choices of the loader -> dtype the weights are stored in; None leaves it to ComfyUI."""


def load_model(path: Path, weight_dtype: str = "default") -> ModelPatcher:
    """Make a MODEL from a checkpoint.

    Args:
        path: File or folder of weights.
        weight_dtype: Key of `WEIGHT_DTYPES`.

    Returns:
        A ModelPatcher whose `.model` is a `Kandinsky5`.

    Raises:
        CheckpointError: The file is damaged or of another model.
    """
    wanted = WEIGHT_DTYPES[weight_dtype]
    checkpoint = open_checkpoint(path, component="transformer", keep_scales=True)
    info = checkpoint.info
    scaled = checkpoint.scaled_dtype
    if scaled is not None and not (wanted in (None, scaled) and has_scaled_layers()):
        checkpoint, scaled = Checkpoint(info), None
    device = comfy.model_management.get_torch_device()
    dtype = scaled or wanted or _default_dtype(info)
    stays_packed = wanted is None and any(entry.packing for entry in checkpoint.entries.values())
    if scaled is None and checkpoint.is_unpacked and not stays_packed:
        logging.info("Kandinsky 5: %s (%s) is unpacked to %s.", path.name, info.precision, dtype)
    config = ModelConfig(info, space_of_transformer(info))
    config.set_inference_dtype(
        dtype,
        comfy.model_management.unet_manual_cast(dtype, device, config.supported_inference_dtypes),
    )
    if scaled is not None:
        # computes in the dtype of the input, as the fp32 islands need: no products in fp8
        config.custom_operations = comfy.ops.scaled_fp8_ops(
            fp8_matrix_mult=False, scale_input=False, override_dtype=scaled
        )
        config.scaled_fp8 = scaled  # native ModelSave writes the mark of such files then
    model = Kandinsky5(config, info, space_of_transformer(info))
    network = model.diffusion_model
    if scaled is not None:
        _set_scales_to_one(network)
    with checkpoint:
        as_stored = scaled is not None or stays_packed
        assign_weights(network, checkpoint, dtype=None if as_stored else dtype)
    model.device = comfy.model_management.unet_offload_device()
    patcher = PackedPatcher if stays_packed else ModelPatcher
    return patcher(model, load_device=device, offload_device=model.device)


def has_scaled_layers() -> bool:
    """Return whether this ComfyUI has a factory of layers for fp8 weights with a factor each."""
    make = getattr(comfy.ops, "scaled_fp8_ops", None)
    return make is not None and "override_dtype" in inspect.signature(make).parameters


def _default_dtype(info: CheckpointInfo) -> torch.dtype:
    """Return what ComfyUI would keep the weights in; a file in fp8 stays so."""
    unknown = -1  # to ComfyUI a size that does not fit, for which it keeps fp8
    return comfy.model_management.unet_dtype(
        model_params=unknown if info.dtype.itemsize == 1 else info.num_parameters,
        supported_dtypes=ModelConfig.supported_inference_dtypes,
        weight_dtype=info.dtype,
    )


def _set_scales_to_one(network: torch.nn.Module) -> None:
    """Set factors of 1: scaled files leave some layers unscaled, without a factor in the file."""
    for module in network.modules():
        if getattr(module, "scale_weight", None) is not None:
            module.scale_weight = torch.nn.Parameter(torch.ones(()), requires_grad=False)
