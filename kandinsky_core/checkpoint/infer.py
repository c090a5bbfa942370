"""Dimensions of a network from the shapes of its tensors."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping

from ..family.config import DiTConfig, ImageVAEConfig, VideoVAEConfig
from ..family.variants import VARIANTS
from ..models.vae.keys import VAELayout
from ..models.vae.layers import pixel_channels

Shapes = Mapping[str, tuple[int, ...]]

_ENCODER_BLOCK = {
    "diffusers": re.compile(r"encoder\.down_blocks\.\d+\.resnets\.\d+\."),
    "original": re.compile(r"encoder\.down\.\d+\.block\.\d+\."),
}
"""What the names in one residual block of an autoencoder's encoder begin with."""

# the family splits a head's rotary channels over (t, h, w) by the head's width alone
_AXES_DIMS = {sum(config.axes_dims): config.axes_dims for config in VARIANTS.values()}


def dit_config(shapes: Shapes, stated: DiTConfig | None = None) -> DiTConfig:
    """Read off the dimensions of a CrossDiT.

    Args:
        shapes: Tensor name, without prefix -> shape.
        stated: Where to take what leaves no trace in the weights (patch, split of the rotary
            channels, largest grid); None takes the family's.

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
    patch_thw = stated.patch_thw if stated else DiTConfig.patch_thw
    volume = math.prod(patch_thw)
    if patch_out % volume:
        raise ValueError(f"its output is {patch_out} wide, which is no multiple of {volume}")
    if patch_in not in (patch_out, 2 * patch_out + volume):
        raise ValueError(
            f"its input is {patch_in} wide, which is neither {patch_out} (latents) "
            f"nor {2 * patch_out + volume} (latents, condition and mask)"
        )
    axes_dims = stated.axes_dims if stated else _AXES_DIMS.get(head_dim)
    if axes_dims is None or sum(axes_dims) != head_dim:
        known = [sum(stated.axes_dims)] if stated else sorted(_AXES_DIMS)
        raise ValueError(f"its heads are {head_dim} wide, where {known} are known")
    return DiTConfig(
        model_dim=model_dim,
        ff_dim=ff_dim,
        time_dim=time_dim,
        num_text_blocks=_count(shapes, "text_transformer_blocks"),
        num_visual_blocks=_count(shapes, "visual_transformer_blocks"),
        axes_dims=axes_dims,
        visual_cond=patch_in != patch_out,
        latent_channels=patch_out // volume,
        text_dim=shapes["text_embeddings.in_layer.weight"][1],
        pooled_dim=shapes["pooled_text_embeddings.in_layer.weight"][1],
        patch_thw=patch_thw,
        max_grid_thw=stated.max_grid_thw if stated else DiTConfig.max_grid_thw,
    )


def matching_variant(config: DiTConfig) -> str | None:
    """Name of the row with these dimensions, or None."""
    return next((name for name, row in VARIANTS.items() if row == config), None)


def vae_mismatch(
    shapes: Shapes, layout: VAELayout, config: VideoVAEConfig | ImageVAEConfig
) -> str | None:
    """Return what about a VAE's weights is not as `config` says, or None.

    Args:
        shapes: Tensor name, without prefix -> shape.
        layout: Naming of the file.
        config: Expected dimensions.

    Returns:
        A clause for an error, e.g. "32 latent channels where 16 are expected".
    """
    conv = "conv_in.conv.weight" if layout.kind == "video" else "conv_in.weight"
    decoder, encoder = shapes.get(f"decoder.{conv}"), shapes.get(f"encoder.{conv}")
    if decoder is None or encoder is None:
        return "no encoder.conv_in or no decoder.conv_in where both are expected"
    facts = (
        ("latent channels", decoder[1], config.latent_channels),
        ("channels in the middle", decoder[0], config.block_out_channels[-1]),
        ("channels after the first layer", encoder[0], config.block_out_channels[0]),
        ("input channels", encoder[1], pixel_channels(config)),
        ("resolutions", layout.num_stages, len(config.block_out_channels)),
        (
            "residual blocks in the encoder",
            len(
                {match[0] for key in shapes if (match := _ENCODER_BLOCK[layout.naming].match(key))}
            ),
            len(config.block_out_channels) * config.layers_per_block,
        ),
    )
    for what, found, expected in facts:
        if found != expected:
            return f"{found} {what} where {expected} are expected"
    return None


def _count(shapes: Shapes, name: str) -> int:
    """Return the number of blocks in the list `name`; the file must hold each of them."""
    pattern = re.compile(rf"{name}\.(\d{{1,9}})\.")
    numbers = {int(match[1]) for key in shapes if (match := pattern.match(key))}
    last = max(numbers, default=-1)
    if len(numbers) <= last:
        missing = next(number for number in range(last) if number not in numbers)
        raise ValueError(f"it has {name} {last} and none of number {missing}")
    return len(numbers)
