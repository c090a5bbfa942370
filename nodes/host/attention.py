"""Which attention a MODEL uses: what its checkpoint was trained with, or what a node chose.

The choice lives in the MODEL's transformer_options, so that branches of a workflow may differ.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

from comfy.model_patcher import ModelPatcher
from torch import Tensor

from ...kandinsky_core.attention import Attend, MapReport, Nabla, attend
from ...kandinsky_core.config import DiTConfig
from ...kandinsky_core.pipeline import nabla_for
from ...kandinsky_core.settings import Attention, SamplingSettings
from ...kandinsky_core.shapes import RELEASED, VideoShape

CHOICE = "k5_attention"
"""Key of transformer_options: an `AttentionChoice`."""
WATCH = "k5_watch_maps"
"""Key of transformer_options: a `WatchMaps`."""

WatchMaps = Callable[[Mapping[str, Any], MapReport], None]
"""Called with the transformer_options of a call and every map that NABLA makes in it."""


@dataclass(frozen=True)
class AttentionChoice:
    """What a node asks for; the default leaves everything to the checkpoint."""

    attention: Attention | None = None
    """Dense or NABLA; None is what the checkpoint was trained with."""
    changes: Mapping[str, Any] = field(default_factory=dict)
    """Fields of `Nabla` that differ from the checkpoint's."""
    attend: Attend = attend
    """Backend of every attention in the network."""

    def nabla(self, settings: SamplingSettings) -> Nabla | None:
        """The sparse attention to run with, None for dense.

        Raises:
            ValueError: A number is out of its range.
        """
        if self.attention is not None:
            settings = replace(settings, attention=self.attention)
        nabla = nabla_for(settings)
        return None if nabla is None else replace(nabla, **self.changes)


def with_attention(model: ModelPatcher, choice: AttentionChoice) -> ModelPatcher:
    """Copy a MODEL with another choice of attention."""
    patched = model.clone()
    patched.model_options.setdefault("transformer_options", {})[CHOICE] = choice
    return patched


def with_watch(model: ModelPatcher, watch: WatchMaps) -> ModelPatcher:
    """Copy a MODEL so that `watch` sees what NABLA decides."""
    patched = model.clone()
    patched.model_options.setdefault("transformer_options", {})[WATCH] = watch
    return patched


def chosen_attention(
    options: Mapping[str, Any], settings: SamplingSettings, latents: Tensor, config: DiTConfig
) -> tuple[Nabla | None, Attend]:
    """How the network attends in one call.

    Args:
        options: transformer_options.
        settings: Of the checkpoint at this size.
        latents: What the network will see, (B, C, T, H, W) or (B, C, H, W).
        config: Of the network.

    Returns:
        NABLA or None, and the backend.

    Raises:
        ValueError: The size does not divide into NABLA's tiles.
    """
    choice: AttentionChoice = options.get(CHOICE, AttentionChoice())
    nabla = choice.nabla(settings)
    if nabla is not None:
        _check_size(latents, nabla, config)
        watch: WatchMaps | None = options.get(WATCH)
        if watch is not None:
            nabla = replace(nabla, observe=partial(watch, options))
    return nabla, choice.attend


def _check_size(latents: Tensor, nabla: Nabla, config: DiTConfig) -> None:
    """Name sizes in pixels, as users know them; the core would name them in latent cells."""
    geometry = replace(RELEASED, patch_thw=config.patch_thw, tile_thw=nabla.tile_thw)
    time, space_h, space_w = geometry.compression_thw
    frames = 1 if latents.ndim == 4 else (latents.shape[2] - 1) * time + 1
    height, width = latents.shape[-2] * space_h, latents.shape[-1] * space_w
    try:
        VideoShape(frames, height, width).check(geometry)
    except ValueError as error:
        raise ValueError(
            f"latent: {error} NABLA (Kandinsky 5) with mode off chooses dense attention."
        ) from error
