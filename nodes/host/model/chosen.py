"""Settings that a node chose for a MODEL in place of its checkpoint's.

They live on the copy of the MODEL, so that branches of a workflow may differ.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from comfy.model_patcher import ModelPatcher

from ....kandinsky_core.family import SamplingSettings
from ..attention.choice import CHOICE, AttentionChoice, with_attention
from .sampling import FlowSampling, sampling_shift

ROPE_SCALE = "k5_rope_scale"
"""Key of transformer_options: divisors of the rotary angles (t, h, w)."""


def chosen_before(model: ModelPatcher) -> dict[str, Any]:
    """Return the fields of `SamplingSettings` that nodes have set on a MODEL, ModelSamplingSD3
    included."""
    options = model.model_options.get("transformer_options", {})
    choice: AttentionChoice = options.get(CHOICE, AttentionChoice())
    found = {
        "shift": sampling_shift(model),
        "rope_scale": options.get(ROPE_SCALE),
        "attention": choice.attention,
        "nabla_p": choice.changes.get("cdf_threshold"),
        "tile_thw": choice.changes.get("tile_thw"),
    }
    return {field: value for field, value in found.items() if value is not None}


def with_settings(model: ModelPatcher, settings: SamplingSettings) -> ModelPatcher:
    """Copy a MODEL so that it uses these settings at every size.

    Args:
        model: From `load_model`.
        settings: Shift, RoPE scale, attention and P are taken; what NABLA (Kandinsky 5) chose
            beyond them stays.

    Returns:
        The copy.

    Raises:
        ValueError: A number is out of its range.
    """
    options = model.model_options.get("transformer_options", {})
    before: AttentionChoice = options.get(CHOICE, AttentionChoice())
    changes = {**before.changes, "cdf_threshold": settings.nabla_p}
    choice = replace(before, attention=settings.attention, changes=changes)
    choice.nabla(settings)  # refuses numbers out of their range
    patched = with_attention(model, choice)
    patched.model_options["transformer_options"][ROPE_SCALE] = settings.rope_scale
    sampling = FlowSampling(model.model.model_config)
    sampling.set_parameters(shift=settings.shift)
    patched.add_object_patch("model_sampling", sampling)
    return patched


def chosen_rope_scale(
    options: Mapping[str, Any], settings: SamplingSettings
) -> tuple[float, float, float]:
    """Return RoPE scale (t, h, w) of one call: what a node chose, else the checkpoint's."""
    return options.get(ROPE_SCALE, settings.rope_scale)
