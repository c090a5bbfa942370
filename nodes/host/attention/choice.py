"""Which attention a MODEL uses: what its checkpoint was trained with, or what a node chose.

The choice lives in the MODEL's transformer_options, so that branches of a workflow may differ.
Letters: B batch, N heads, S queries, L keys, K head dim.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch
from comfy.ldm.modules.attention import optimized_attention, wrap_attn
from comfy.model_patcher import ModelPatcher
from einops import rearrange
from torch import Tensor

from ....kandinsky_core.attention import Attend, BlockMap, MapReport, Nabla, attend
from ....kandinsky_core.family import RELEASED, Attention, DiTConfig, SamplingSettings, VideoShape
from ....kandinsky_core.pipeline import nabla_for

CHOICE = "k5_attention"
"""Key of transformer_options: an `AttentionChoice`."""
WATCH = "k5_watch_maps"
"""Key of transformer_options: a `WatchMaps`."""

OVERRIDE = "optimized_attention_override"
"""The host's own key of transformer_options: an `Override`."""

WatchMaps = Callable[[Mapping[str, Any], MapReport], None]
"""Called with the transformer_options of a call and every map that NABLA makes in it."""
Override = Callable[..., Tensor]
"""Called as (func, q, k, v, heads, mask=..., ...) where the host would call func, its attention."""


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
        """Return the sparse attention to run with, None for dense.

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
    """Return how the network attends in one call.

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


def through_override(attend: Attend, options: Mapping[str, Any]) -> Attend:
    """Offer dense attention to what another node put in place of the host's.

    Args:
        attend: What computes, and what that node may call in its turn.
        options: transformer_options.

    Returns:
        An `Attend`; attention by a block map stays with `attend`.
    """
    if options.get(OVERRIDE) is None:
        return attend
    host_form = wrap_attn(partial(_in_host_form, attend))  # consults the options

    def overridden(
        q: Tensor,
        k: Tensor,
        v: Tensor,
        *,
        mask: Tensor | None = None,
        block_map: BlockMap | None = None,
    ) -> Tensor:
        if block_map is not None:
            return attend(q, k, v, mask=mask, block_map=block_map)
        return host_form(
            q,
            k,
            v,
            q.shape[1],
            mask=None if mask is None else mask[:, None, None, :],  # (B, 1, 1, L)
            skip_reshape=True,
            skip_output_reshape=True,
            transformer_options=options,
        )

    return overridden


def _in_host_form(
    attend: Attend,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    heads: int,
    mask: Tensor | None = None,
    attn_precision: torch.dtype | None = None,
    skip_reshape: bool = False,
    skip_output_reshape: bool = False,
    **_: Any,
) -> Tensor:
    """Compute what the host's attention functions do, with a backend of ours."""
    if not skip_reshape:
        q, k, v = (rearrange(x, "b l (n k) -> b n l k", n=heads) for x in (q, k, v))
    if mask is None or (mask.dtype == torch.bool and mask.shape[1:3] == (1, 1)):
        out = attend(q, k, v, mask=None if mask is None else mask[:, 0, 0])  # (B, N, S, K)
    else:  # not one of ours: a bias, or one for each query
        out = optimized_attention(
            q,
            k,
            v,
            heads,
            mask=mask,
            attn_precision=attn_precision,
            skip_reshape=True,
            skip_output_reshape=True,
        )
    return out if skip_output_reshape else rearrange(out, "b n s k -> b s (n k)")


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
