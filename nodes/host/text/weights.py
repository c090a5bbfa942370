"""Weight files of Qwen2.5-VL and CLIP-L for ComfyUI's text models.

The models are built from what the headers say and filled layer by layer: the tensors of all layers
at once would be a second copy of the model. Matrices of a GGUF file stay packed.
"""

from __future__ import annotations

import inspect
import logging
from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import comfy.text_encoders.qwen_image
import torch
from torch import Tensor, nn

from ....kandinsky_core.text import needed_tensors
from ....kandinsky_core.weights import (
    Header,
    PackedWeight,
    QwenHeader,
    WeightFiles,
    read_header,
    read_qwen_header,
)
from ..model.load import has_scaled_layers

VISION = "visual."
SCALED_MARK = "scaled_fp8"
"""Name by which the host knows a file of scaled layers."""

_HEAD_DIM = 128  # the host's Qwen2.5 has no other
_QWEN_ROOT, _CLIP_ROOT = "model.", "text_model."
# what a file may lack: parts not used, and factors of layers that are not scaled
_UNUSED = ("text_projection", "logit_scale", "position_ids", "scale_weight", SCALED_MARK)


@dataclass(frozen=True)
class ModelWeights:
    """The weights of one model under ComfyUI's names."""

    files: WeightFiles
    dtype: torch.dtype | None
    """In which they are read; None is that of each."""
    shapes: dict[str, Tensor]
    """What reading gives, on the meta device."""
    label: str
    """The files, for messages."""
    stays_packed: bool
    """Whether matrices stay in the blocks of a GGUF file."""


@dataclass(frozen=True)
class QwenClipWeights:
    """The weights of both models."""

    qwen: ModelWeights
    clip: ModelWeights
    qwen_header: QwenHeader

    @property
    def num_parameters(self) -> int:
        return sum(w.numel() for model in (self.qwen, self.clip) for w in model.shapes.values())

    @property
    def sees(self) -> bool:
        """Whether Qwen's vision tower is among them."""
        return any(name.startswith(VISION) for name in self.qwen.shapes)


def read_qwen_clip(qwen_path: Path, clip_path: Path) -> QwenClipWeights:
    """Read the headers of both files.

    Raises:
        ValueError: A file is damaged or of another model.
    """
    takes_scales = "llama_scaled_fp8" in parameters_of(comfy.text_encoders.qwen_image.te)
    header = read_qwen_header(qwen_path)
    qwen = _open(header, _QWEN_ROOT, header.label, keep_scales=takes_scales and has_scaled_layers())
    clip = _open(read_header(clip_path, "text_encoder"), _CLIP_ROOT, str(clip_path))
    expected = ("model.layers.0.self_attn.q_proj.weight", "model.norm.weight")
    if not all(name in qwen.shapes for name in expected):
        raise ValueError(
            f"qwen_name: {qwen_path.name} is not a Qwen2.5-VL text encoder; use "
            "qwen_2.5_vl_7b.safetensors, its fp8 version, or Qwen2.5-VL-7B as GGUF."
        )
    if "text_model.final_layer_norm.weight" not in clip.shapes:
        raise ValueError(
            f"clip_name: {clip_path.name} is not a CLIP-L text encoder; use clip_l.safetensors."
        )
    if header.vision_path is not None:
        logging.info("Kandinsky 5: %s sees through %s.", qwen_path.name, header.vision_path.name)
    return QwenClipWeights(qwen, clip, header)


def _open(header: Header, root: str, label: str, *, keep_scales: bool = False) -> ModelWeights:
    """Return tensors under ComfyUI's names; scaled fp8 stays so only for layers that take it."""
    tensors = {
        name if name.startswith(VISION) else root + name: entry
        for name, entry in needed_tensors(header).items()
    }
    files = WeightFiles(header.path, tensors, keep_scales=keep_scales)
    stays_packed = any(entry.packing for entry in tensors.values())
    # the host takes the dtype of a norm for that of the model, and GGUF keeps norms in fp32
    dtype = files.main_dtype if files.is_unpacked else None
    shapes = {name: files.describe(name, dtype) for name in files}
    if files.scaled_dtype is not None:
        shapes[SCALED_MARK] = torch.empty(0, dtype=files.scaled_dtype, device="meta")
    elif dtype is not None and not stays_packed:
        logging.info("Kandinsky 5: %s is unpacked to %s.", header.path.name, dtype)
    return ModelWeights(files, dtype, shapes, label, stays_packed)


def fill(network: nn.Module, weights: ModelWeights, unused: Iterable[str] = ()) -> None:
    """Give one of the host's text models its weights, layer by layer.

    Args:
        network: Inside the host's SDClipModel; its weights are in its layers without parts.
        weights: What to read.
        unused: Parts of names of weights that may be missing, beside those that never matter.

    Raises:
        ValueError: Weights are missing or of other shapes.
    """
    stored: defaultdict[str, dict[str, str]] = defaultdict(dict)
    for name in weights.files:
        layer, _, leaf = name.rpartition(".")
        stored[layer][leaf] = name
    missing: list[str] = []
    with weights.files:
        for layer, module in network.named_modules():
            if next(module.children(), None) is None:
                missing += (
                    f"{layer}.{leaf}" for leaf in _fill_layer(module, weights, stored[layer])
                )
    ignored = (*_UNUSED, *unused)
    missing = [name for name in missing if not any(part in name for part in ignored)]
    if missing:
        raise ValueError(
            f"{weights.label} lacks {len(missing)} of the text encoder's weights, first "
            f"{missing[0]}; download it again."
        )


def _fill_layer(layer: nn.Module, weights: ModelWeights, names: dict[str, str]) -> list[str]:
    """Give one layer its weights, by their names in it and in the files; returns what it lacks."""
    held = _hold_packed(layer, weights, names.get("weight"))
    read = {leaf: name for leaf, name in names.items() if leaf not in held}
    for leaf, parameter in layer.named_parameters(recurse=False):
        # the host makes all of a model or scaled layer in fp8, norms and biases too
        dtype = weights.shapes[read[leaf]].dtype if leaf in read else parameter.dtype
        if parameter.itemsize == 1 < dtype.itemsize:
            parameter.data = parameter.data.to(dtype)
    state = {leaf: weights.files.read(name, weights.dtype) for leaf, name in read.items()}
    try:
        missing = layer.load_state_dict(state, strict=False).missing_keys
    except RuntimeError as error:
        raise ValueError(_other_shapes(weights)) from error
    return [leaf for leaf in missing if leaf not in held]


def _hold_packed(layer: nn.Module, weights: ModelWeights, name: str | None) -> tuple[str, ...]:
    """Give a layer its weight as it is packed in a GGUF file; returns what it now has."""
    packing = weights.files.entries[name].packing if name is not None else None
    if name is None or packing is None or not isinstance(layer, PackedWeight):
        return ()
    if weights.shapes[name].shape[1] != layer.columns or len(layer.weight) != len(
        weights.shapes[name]
    ):
        raise ValueError(_other_shapes(weights))
    layer.hold(weights.files.read_packed(name).to(layer.weight.device), packing)
    return ("weight",)


def _other_shapes(weights: ModelWeights) -> str:
    return (
        f"{weights.label} has weights of other shapes than Qwen2.5-VL 7B and CLIP-L; use the "
        "files that the help page of this node names."
    )


def parameters_of(function: Callable[..., Any]) -> set[str]:
    """Return the names that a function of the host takes; they differ between its versions."""
    return set(inspect.signature(function).parameters)


def qwen_config(shapes: dict[str, Tensor]) -> dict[str, int]:
    """Return Qwen's dimensions, read off its weights."""
    layer = "model.layers.0"
    vocab_size, hidden_size = shapes["model.embed_tokens.weight"].shape
    return {
        "vocab_size": vocab_size,
        "hidden_size": hidden_size,
        "intermediate_size": shapes[f"{layer}.mlp.gate_proj.weight"].shape[0],
        "num_hidden_layers": _count_layers(shapes, "model.layers."),
        "num_attention_heads": shapes[f"{layer}.self_attn.q_proj.weight"].shape[0] // _HEAD_DIM,
        "num_key_value_heads": shapes[f"{layer}.self_attn.k_proj.weight"].shape[0] // _HEAD_DIM,
    }


def clip_config(shapes: dict[str, Tensor]) -> dict[str, int]:
    """Return CLIP's dimensions, read off its weights."""
    hidden_size = shapes["text_model.final_layer_norm.weight"].shape[0]
    return {
        "hidden_size": hidden_size,
        "intermediate_size": shapes["text_model.encoder.layers.0.mlp.fc1.weight"].shape[0],
        "num_hidden_layers": _count_layers(shapes, "text_model.encoder.layers."),
        "num_attention_heads": hidden_size // 64,
    }


def _count_layers(shapes: dict[str, Tensor], prefix: str) -> int:
    there = {name.removeprefix(prefix).split(".")[0] for name in shapes if name.startswith(prefix)}
    count = next(number for number in range(len(there) + 1) if str(number) not in there)
    if count < len(there):
        raise ValueError(
            f"the text encoder's weights name {len(there)} layers and not {prefix}{count}; "
            "download the file again."
        )
    return count
