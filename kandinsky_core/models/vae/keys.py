"""The two namings of an autoencoder's weights: Diffusers' (which is ours) and the original one.

The original naming is that of latent diffusion: FLUX's own file and the single-file releases of
HunyuanVideo's VAE use it. It numbers the decoder's stages from the finest, Diffusers from the
coarsest, and it stores the attention's linear layers as convolutions of size 1.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

PREFIXES = ("", "vae.", "first_stage_model.")
"""What a file may put before every name."""

NAMES = (
    ("encoder.down.{stage}.block.", "encoder.down_blocks.{stage}.resnets."),
    ("encoder.down.{stage}.downsample.", "encoder.down_blocks.{stage}.downsamplers.0."),
    ("decoder.up.{stage}.block.", "decoder.up_blocks.{reversed}.resnets."),
    ("decoder.up.{stage}.upsample.", "decoder.up_blocks.{reversed}.upsamplers.0."),
    (".mid.block_1.", ".mid_block.resnets.0."),
    (".mid.block_2.", ".mid_block.resnets.1."),
    (".mid.attn_1.norm.", ".mid_block.attentions.0.group_norm."),
    (".mid.attn_1.q.", ".mid_block.attentions.0.to_q."),
    (".mid.attn_1.k.", ".mid_block.attentions.0.to_k."),
    (".mid.attn_1.v.", ".mid_block.attentions.0.to_v."),
    (".mid.attn_1.proj_out.", ".mid_block.attentions.0.to_out.0."),
    (".nin_shortcut.", ".conv_shortcut."),
    ("coder.norm_out.", "coder.conv_norm_out."),
)
"""(original, Diffusers) parts of a name; the rest is the same. {reversed} counts stages from the
other end."""

Kind = Literal["video", "image"]
Naming = Literal["diffusers", "original"]

_MARKERS: tuple[tuple[Kind, Naming, str], ...] = (
    # a causal convolution is wrapped, hence .conv.weight in the video autoencoder
    ("video", "diffusers", "decoder.up_blocks.{stage}.resnets.0.conv1.conv.weight"),
    ("video", "original", "decoder.up.{stage}.block.0.conv1.conv.weight"),
    ("image", "diffusers", "decoder.up_blocks.{stage}.resnets.0.conv1.weight"),
    ("image", "original", "decoder.up.{stage}.block.0.conv1.weight"),
)


@dataclass(frozen=True)
class VAELayout:
    """How a file names the weights of an autoencoder."""

    kind: Kind
    naming: Naming
    prefix: str
    """Before every name; may be empty."""
    num_stages: int
    """Resolutions of the encoder, and of the decoder."""


def detect_vae_layout(keys: Iterable[str]) -> VAELayout | None:
    """Recognise an autoencoder by the names of its weights.

    Args:
        keys: Every name in the file.

    Returns:
        The layout, or None if none of these names belongs to one of the two autoencoders.
    """
    keys = list(keys)
    for kind, naming, marker in _MARKERS:
        for prefix in PREFIXES:
            pattern = _pattern(prefix + marker, "stage")
            num_stages = sum(pattern.fullmatch(key) is not None for key in keys)
            if num_stages:
                return VAELayout(kind, naming, prefix, num_stages)
    return None


def to_diffusers_key(key: str, num_stages: int) -> str:
    """Translate an original name, without prefix; a Diffusers name stays as it is."""
    return _translate(key, num_stages, NAMES)


def to_original_key(key: str, num_stages: int) -> str:
    """Translate a Diffusers name, without prefix; an original name stays as it is."""
    return _translate(key, num_stages, [(ours, original) for original, ours in NAMES])


def to_diffusers_shape(key: str, shape: Sequence[int]) -> tuple[int, ...]:
    """Return the shape a tensor has in Diffusers' layout: linear instead of convolution in
    attention.

    Args:
        key: Name in Diffusers' layout.
        shape: In the file.

    Returns:
        (out, in) for a linear layer's weight, else the shape as it is.
    """
    linear = re.search(r"\.attentions\.0\.to_\w+(\.0)?\.weight$", key)
    if linear and len(shape) > 2 and all(size == 1 for size in shape[2:]):
        return tuple(shape[:2])
    return tuple(shape)


def _translate(key: str, num_stages: int, names: Sequence[tuple[str, str]]) -> str:
    for old, new in names:
        match = _pattern(old, "stage", "reversed").search(key)
        if match is None:
            continue
        for group, value in match.groupdict().items():
            other = num_stages - 1 - int(value)
            stage, mirrored = (other, value) if group == "reversed" else (value, other)
            new = new.format(stage=stage, reversed=mirrored)
        key = key[: match.start()] + new + key[match.end() :]
    return key


def _pattern(text: str, *groups: str) -> re.Pattern[str]:
    pattern = re.escape(text)
    for group in groups:
        pattern = pattern.replace(re.escape(f"{{{group}}}"), rf"(?P<{group}>\d{{1,9}})")
    return re.compile(pattern)
