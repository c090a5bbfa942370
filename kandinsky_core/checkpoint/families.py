"""Which model a list of tensor names belongs to: ours, or one that users mistake for it.

A signature is a tensor name that only one layout has. What stands before it in a file is that
file's prefix ("model.diffusion_model.", "transformer."...), so prefixes need no list.
Autoencoders are recognised by `models/vae/keys.py`, which knows both of their layouts.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from ..models.vae.keys import VAELayout, detect_vae_layout
from ..weights import Component


class Family(NamedTuple):
    """What a file holds and how it names it."""

    component: Component
    name: str
    """E.g. "kandinsky5", "video VAE", "clip"."""
    prefix: str
    """What stands before the network's own names."""
    vae_layout: VAELayout | None = None


QWEN_TEXT = "qwen2.5-vl without vision"
QWEN_VISION = "qwen2.5-vl vision tower (mmproj)"

_QWEN = "qwen2.5-vl"

_KNOWN: tuple[tuple[Component, str, str], ...] = (
    ("transformer", "kandinsky5", "visual_transformer_blocks.0.cross_attention.to_key.weight"),
    ("text_encoder", "nano", "layers.0.feed_forward_in.weight"),
    ("text_encoder", _QWEN, "visual.blocks.0.attn.qkv.weight"),
    # GGUF files, and what is cut out of others; Llama's queries have no bias
    ("text_encoder", QWEN_TEXT, "model.layers.0.self_attn.q_proj.bias"),
    ("text_encoder", QWEN_TEXT, "language_model.layers.0.self_attn.q_proj.bias"),
    ("text_encoder", "clip", "text_model.encoder.layers.0.self_attn.q_proj.weight"),
)

_KANDINSKY_6 = "a Kandinsky 6 transformer"
_WAN_VAE = "a Wan VAE"

# (what it is, signatures of its layouts); the first that matches decides
_FOREIGN: tuple[tuple[str, tuple[str, ...]], ...] = (
    (
        _KANDINSKY_6,
        (
            # of the model of video and sound, in both of its layouts, and of its upscaler
            "video_pooled_text_embeddings.in_layer.weight",
            "time_embeddings.timestep_embedder.linear_1.weight",
        ),
    ),
    ("a Wan transformer", ("blocks.0.cross_attn.q.weight", "condition_embedder.time_proj.weight")),
    (
        "a HunyuanVideo transformer",
        (
            "txt_in.individual_token_refiner.blocks.0.norm1.weight",
            "context_embedder.token_refiner.refiner_blocks.0.norm1.weight",
        ),
    ),
    (
        "a FLUX transformer",
        (
            "double_blocks.0.img_attn.norm.key_norm.scale",
            "single_transformer_blocks.0.proj_mlp.weight",
        ),
    ),
    ("a Qwen-Image transformer", ("transformer_blocks.0.img_mod.1.weight",)),
    (
        "an LTX-Video transformer",
        ("patchify_proj.weight", "transformer_blocks.0.scale_shift_table"),
    ),
    ("a Stable Diffusion 3 transformer", ("joint_blocks.0.x_block.attn.qkv.weight",)),
    (
        "a Stable Diffusion or Kandinsky 2 UNet",
        ("input_blocks.0.0.weight", "down_blocks.1.attentions.0.proj_in.weight"),
    ),
    (
        _WAN_VAE,
        ("decoder.middle.0.residual.0.gamma", "decoder.mid_block.resnets.0.norm1.gamma"),
    ),
    ("a T5 text encoder", ("encoder.block.0.layer.0.SelfAttention.q.weight",)),
    ("the vision part (mmproj) of a language model", ("v.patch_embd.weight",)),
    ("a language model other than Qwen2.5-VL", ("token_embd.weight",)),
)

_LORA_MARKS = (".lora_A.", ".lora_B.", ".lora_down.", ".lora_up.", ".lokr_w1", ".hada_w1_a")


def find_known(names: Iterable[str]) -> list[Family]:
    """Return the parts of ours that the names hold, transformers first."""
    names = list(names)
    foreign = find_foreign(names)
    found = []
    for component, family, signature in _KNOWN:
        if component == "transformer" and foreign == _KANDINSKY_6:
            continue  # the upscaler's blocks are named as ours
        candidates = {_prefix(name, signature) for name in names}
        prefixes = [prefix for prefix in candidates if prefix is not None]
        if prefixes:
            # a network may hold another's names deeper down
            found.append(Family(component, family, min(prefixes, key=len)))
    parts = [family.name for family in found]
    if _QWEN in parts and QWEN_TEXT not in parts:
        place = parts.index(_QWEN)
        found[place] = found[place]._replace(name=QWEN_VISION)
    # Wan's VAE has FLUX's names and some more
    layout = detect_vae_layout(names) if foreign != _WAN_VAE else None
    if layout:
        vae = Family("vae", f"{layout.kind} VAE", layout.prefix, layout)
        found.insert(int(bool(found) and found[0].component == "transformer"), vae)
    return found


def find_foreign(names: Iterable[str]) -> str | None:
    """Return what other model the names belong to, with its article, or None."""
    names = list(names)
    for what, signatures in _FOREIGN:
        if any(_prefix(name, signature) is not None for name in names for signature in signatures):
            return what
    return None


def is_lora(names: Iterable[str]) -> bool:
    """Return whether the names are those of a LoRA or a like adapter rather than of a model."""
    return any(mark in name for name in names for mark in _LORA_MARKS)


def _prefix(name: str, signature: str) -> str | None:
    if name == signature:
        return ""
    return name[: -len(signature)] if name.endswith("." + signature) else None
