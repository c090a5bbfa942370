"""Dimensions of a network from the shapes of its tensors."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace

from ..config import DiTConfig, ImageVAEConfig, VideoVAEConfig
from ..variants import VARIANTS
from .families import Family

Shapes = Mapping[str, tuple[int, ...]]

# the family splits a head's rotary channels over (t, h, w) by the head's width alone
_AXES_DIMS = {sum(config.axes_dims): config.axes_dims for config in VARIANTS.values()}


def dit_config(shapes: Shapes) -> DiTConfig:
    """Read off the dimensions of a CrossDiT.

    Table lengths and the patch's form leave no trace in the weights and are the family's.

    Args:
        shapes: Tensor name, without prefix -> shape.

    Returns:
        The dimensions.

    Raises:
        KeyError: A tensor that tells a dimension is missing (its name is the argument).
        ValueError: The dimensions contradict each other.
    """
    model_dim, patch_in = shapes["visual_embeddings.in_layer.weight"]
    patch_out = shapes["out_layer.out_layer.weight"][0]
    time_dim = shapes["time_embeddings.in_layer.weight"][0]
    head_dim = shapes["visual_transformer_blocks.0.self_attention.query_norm.weight"][0]
    ff_dim = shapes["visual_transformer_blocks.0.feed_forward.in_layer.weight"][0]
    patch_volume = DiTConfig.patch_thw[0] * DiTConfig.patch_thw[1] * DiTConfig.patch_thw[2]
    if patch_out % patch_volume:
        raise ValueError(f"its output is {patch_out} wide, which is no multiple of {patch_volume}")
    if patch_in not in (patch_out, 2 * patch_out + patch_volume):
        raise ValueError(
            f"its input is {patch_in} wide, which is neither {patch_out} (latents) "
            f"nor {2 * patch_out + patch_volume} (latents, condition and mask)"
        )
    if head_dim not in _AXES_DIMS:
        raise ValueError(
            f"its heads are {head_dim} wide, and the family's are {sorted(_AXES_DIMS)}"
        )
    return DiTConfig(
        model_dim=model_dim,
        ff_dim=ff_dim,
        time_dim=time_dim,
        num_text_blocks=_count(shapes, "text_transformer_blocks"),
        num_visual_blocks=_count(shapes, "visual_transformer_blocks"),
        axes_dims=_AXES_DIMS[head_dim],
        visual_cond=patch_in != patch_out,
        latent_channels=patch_out // patch_volume,
        text_dim=shapes["text_embeddings.in_layer.weight"][1],
        pooled_dim=shapes["pooled_text_embeddings.in_layer.weight"][1],
    )


def matching_variant(config: DiTConfig) -> str | None:
    """Name of the row with these dimensions, or None."""
    for name, row in VARIANTS.items():
        # lengths of tables are not in the weights
        same_tables = replace(config, max_text_len=row.max_text_len, max_grid_thw=row.max_grid_thw)
        if same_tables == row:
            return name
    return None


def vae_mismatch(
    shapes: Shapes, family: Family, config: VideoVAEConfig | ImageVAEConfig
) -> str | None:
    """What about a VAE's weights is not as `config` says, or None.

    Args:
        shapes: Tensor name, without prefix -> shape.
        family: Layout of the names.
        config: Expected dimensions.

    Returns:
        A clause for an error, e.g. "32 latent channels where 16 are expected".
    """
    conv = "conv_in.conv.weight" if family.name == "video_vae" else "conv_in.weight"
    decoder, encoder = shapes.get(f"decoder.{conv}"), shapes.get(f"encoder.{conv}")
    if decoder is None or encoder is None:
        return "no encoder.conv_in or no decoder.conv_in where both are expected"
    folded = config.patch_size**2 if isinstance(config, VideoVAEConfig) else 1
    facts = (
        ("latent channels", decoder[1], config.latent_channels),
        ("channels in the middle", decoder[0], config.block_out_channels[-1]),
        ("channels after the first layer", encoder[0], config.block_out_channels[0]),
        ("input channels", encoder[1], 3 * folded),
    )
    for what, found, expected in facts:
        if found != expected:
            return f"{found} {what} where {expected} are expected"
    return None


def _count(shapes: Shapes, name: str) -> int:
    """Number of blocks in the list `name`."""
    pattern = re.compile(rf"{name}\.(\d+)\.")
    numbers = (int(match[1]) for key in shapes if (match := pattern.match(key)))
    return max(numbers, default=-1) + 1
