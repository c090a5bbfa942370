"""LoRA: files of any style as patches of a ModelPatcher, and their trigger texts in a CLIP.

The patches are ComfyUI's own, so that casting, partial loading, several LoRAs and saving are too.
"""

from __future__ import annotations

import logging
from pathlib import Path

import comfy.lora
import comfy.sd
from comfy.model_patcher import ModelPatcher

from ...kandinsky_core.checkpoint import layer_shapes, lora_tensors, match_lora, read_lora
from .prompt import TRIGGERS
from .text.clip import is_ours
from .text.native import is_native_pair, with_trigger_option


def with_lora(model: ModelPatcher, path: Path, strength: float) -> tuple[ModelPatcher, str]:
    """Add a LoRA to a copy of a MODEL.

    Args:
        model: Ours, or ComfyUI's own Kandinsky 5, whose layers have the same names.
        path: The LoRA's file.
        strength: 1 is as trained.

    Returns:
        The patched MODEL, and the LoRA's trigger text.

    Raises:
        CheckpointError: The file cannot be used, or belongs to another model.
    """
    lora = read_lora(path)
    match = match_lora(lora, layer_shapes(model.model.diffusion_model))
    if match.note:
        logging.warning("Kandinsky 5: %s", match.note)
    keys = comfy.lora.model_lora_keys_unet(model.model, {})
    patches = comfy.lora.load_lora(lora_tensors(match.pairs, "comfyui"), keys)
    patched = model.clone()
    patched.add_patches(patches, strength)
    return patched, lora.trigger


def with_triggers(clip: comfy.sd.CLIP, trigger: str) -> comfy.sd.CLIP:
    """Let a copy of a CLIP put a trigger text before its prompts, after those it already has.

    Raises:
        ValueError: The CLIP is neither ours nor ComfyUI's kandinsky5, so it would not.
    """
    if is_ours(clip):
        copy = clip.clone()
    elif is_native_pair(clip):
        copy = with_trigger_option(clip)
    else:
        raise ValueError(
            "clip: expected one from Load Text Encoders (Kandinsky 5) or ComfyUI's own kandinsky5 "
            f"encoder, found {type(clip.tokenizer).__name__}; leave it unconnected and write the "
            f"trigger {trigger!r} before the prompt yourself."
        )
    copy.set_tokenizer_option(TRIGGERS, (*clip.tokenizer_options.get(TRIGGERS, ()), trigger))
    return copy
