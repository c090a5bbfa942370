"""llama.cpp's names of Qwen2.5-VL -> those of transformers.

The language model is one file, the vision tower another (mmproj). The tower's converter also takes
apart what transformers keeps as one tensor: queries, keys and values (its latest versions leave
them together), and the two frames of the patch embedding's kernel.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from .entry import TensorEntry

VISION = "visual."
"""What the tower's names begin with."""

_OUTSIDE = {
    "token_embd.weight": "model.embed_tokens.weight",
    "output_norm.weight": "model.norm.weight",
    "output.weight": "lm_head.weight",
}
_IN_LAYER = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_LAYER_NAME = re.compile(r"blk\.(\d+)\.(\w+)\.(weight|bias)")

_VISION_OUTSIDE = {"v.post_ln": "merger.ln_q", "mm.0": "merger.mlp.0", "mm.2": "merger.mlp.2"}
_IN_VISION_BLOCK = {
    "ln1": "norm1",
    "attn_qkv": "attn.qkv",
    "attn_out": "attn.proj",
    "ln2": "norm2",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_VISION_NAME = re.compile(r"v\.blk\.(\d+)\.(\w+)\.(weight|bias)")
_FRAMES = ("v.patch_embd.weight", "v.patch_embd.weight.1")


def rename_qwen(name: str) -> str:
    """Translate one name; what llama.cpp does not name so comes back as it is.

    Args:
        name: E.g. "blk.0.attn_q.weight".

    Returns:
        E.g. "model.layers.0.self_attn.q_proj.weight".
    """
    match = _LAYER_NAME.fullmatch(name)
    if match and match[2] in _IN_LAYER:
        return f"model.layers.{match[1]}.{_IN_LAYER[match[2]]}.{match[3]}"
    return _OUTSIDE.get(name, name)


def rename_vision(tensors: Mapping[str, TensorEntry]) -> dict[str, TensorEntry]:
    """Translate the names of a vision tower and put its divided tensors together.

    Args:
        tensors: Name, e.g. "v.blk.0.attn_q.weight", -> entry.

    Returns:
        Name, e.g. "visual.blocks.0.attn.qkv.weight", -> entry. What is not named so, and parts
        that lack the others or differ from them in shape, come back as they are.
    """
    left = dict(tensors)
    joined: dict[str, TensorEntry] = {}
    for name in tensors:
        match = _VISION_NAME.fullmatch(name)
        if match and match[2] == "attn_q":
            parts = [f"v.blk.{match[1]}.attn_{part}.{match[3]}" for part in "qkv"]
            if _fit_together(parts, left):
                whole = f"{VISION}blocks.{match[1]}.attn.qkv.{match[3]}"
                joined[whole] = TensorEntry.join([left.pop(part) for part in parts], 0)
    if _fit_together(_FRAMES, left) and len(left[_FRAMES[0]].shape) == 4:
        frames = [left.pop(name) for name in _FRAMES]  # (out, in, height, width)
        kernels = [
            frame._replace(shape=(*frame.shape[:2], 1, *frame.shape[2:])) for frame in frames
        ]
        joined[f"{VISION}patch_embed.proj.weight"] = TensorEntry.join(kernels, 2)
    return {_rename_vision(name): entry for name, entry in left.items()} | joined


def _fit_together(names: Sequence[str], tensors: Mapping[str, TensorEntry]) -> bool:
    shapes = {tensors[name].shape if name in tensors else None for name in names}
    return len(shapes) == 1 and None not in shapes


def _rename_vision(name: str) -> str:
    match = _VISION_NAME.fullmatch(name)
    if match and match[2] in _IN_VISION_BLOCK:
        return f"{VISION}blocks.{match[1]}.{_IN_VISION_BLOCK[match[2]]}.{match[3]}"
    layer, _, kind = name.rpartition(".")
    return f"{VISION}{_VISION_OUTSIDE[layer]}.{kind}" if layer in _VISION_OUTSIDE else name
