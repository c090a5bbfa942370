"""fp8 with scales: which tensors of a file are weights, which belong to their quantisation.

A scaled fp8 layer X is X.weight in fp8 and a factor: X.scale_weight in ComfyUI's first files, which
also hold an empty tensor "scaled_fp8" as a mark, X.weight_scale in later ones. The weight is
value x factor. Scales of a layer's input serve fp8 matrix products, which this package does not
do; they and the notes of quantisation programs are dropped.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path

import torch

from ..errors import CheckpointError
from .entry import DTYPES, TensorEntry

Entries = dict[str, TensorEntry]

SCALE = ".scale_weight"
"""What follows a layer's name in the name of its factor, as ComfyUI's scaled layers have it."""

_SCALES = (SCALE, ".weight_scale")
_DROPPED = (".scale_input", ".input_scale", ".comfy_quant")
_MARK = "scaled_fp8"
_FP8 = ("F8_E4M3", "F8_E5M2")
# no linear layers: converters may leave them in fp8 without a factor
_UNSCALED = ("embed_tokens.weight", "patch_embed.proj.weight")


def split_scales(path: Path, tensors: Mapping[str, TensorEntry]) -> tuple[Entries, Entries]:
    """Tell weights from factors.

    Args:
        path: What the user gave, for messages.
        tensors: Name without prefix -> entry.

    Returns:
        Name -> entry of all weights, and name of a weight -> entry of its factor.

    Raises:
        CheckpointError: Factors are missing or of a kind that is not supported.
    """
    weights: Entries = {}
    scales: Entries = {}
    is_marked = False
    for name, entry in tensors.items():
        layer = next((name.removesuffix(end) for end in _SCALES if name.endswith(end)), None)
        if layer is not None and f"{layer}.weight" in tensors:
            scales[f"{layer}.weight"] = entry
        elif name.rpartition(".")[2] == _MARK:
            is_marked = True
        elif not name.endswith(_DROPPED):
            weights[name] = entry
    for name, scale in scales.items():
        _check_scale(path, name, weights[name], scale)
    if is_marked or scales:
        bare = [
            name
            for name, entry in weights.items()
            if entry.dtype in _FP8 and name not in scales and not name.endswith(_UNSCALED)
        ]
        if bare:
            raise CheckpointError(
                f"{path} is a scaled fp8 file in which {len(bare)} of the fp8 tensors lack their "
                f"scale, first {bare[0]}: download it again, or use a bf16 file."
            )
    return weights, scales


def _check_scale(path: Path, name: str, weight: TensorEntry, scale: TensorEntry) -> None:
    if weight.dtype in ("U8", "I8"):
        raise CheckpointError(
            f"{path} holds {name} packed as {weight.dtype} (NVFP4 or another format of 4 bits or "
            "integers), which is not supported: use a file in bf16, fp8 or GGUF."
        )
    if scale.size not in (1, weight.shape[0]):
        raise CheckpointError(
            f"{path} scales {name} of shape {weight.shape} by {scale.shape} factors: expected one "
            "for the tensor or one for each row; use a bf16, fp8 or GGUF file."
        )


def main_dtype(weights: Iterable[TensorEntry], *, is_scaled: bool = False) -> torch.dtype:
    """Return what most elements are when they are read: bf16 where they must be unpacked first."""
    packed, dtype = _most_common(weights)
    if packed or (is_scaled and dtype in _FP8):
        return torch.bfloat16
    return DTYPES.get(dtype, torch.uint8)


def precision_name(weights: Iterable[TensorEntry], *, is_scaled: bool = False) -> str:
    """Return how most elements are stored, for a reader.

    Args:
        weights: Entries of all weights.
        is_scaled: Whether fp8 weights have factors.

    Returns:
        E.g. "bfloat16", "fp8 scaled (float8_e4m3fn)", "GGUF Q4_K".
    """
    weights = list(weights)
    _, dtype = _most_common(weights)
    if any(entry.offset is not None for entry in weights):
        return f"GGUF {dtype}"
    name = str(DTYPES.get(dtype, dtype)).removeprefix("torch.")
    if dtype in _FP8:
        return f"fp8 {'scaled ' * is_scaled}({name})"
    return name


def _most_common(weights: Iterable[TensorEntry]) -> tuple[bool, str]:
    sizes: Counter[tuple[bool, str]] = Counter()
    for entry in weights:
        sizes[entry.is_packed, entry.dtype] += entry.size
    return sizes.most_common(1)[0][0] if sizes else (False, "")
