"""Builds the large text encoders from weight files or from folders in Hugging Face layout.

Weight files are told apart by their tensors' names alone, whichever program wrote them: the
prefixes that differ between versions of transformers, Diffusers folders and ComfyUI's single files
are taken off on both sides before the names are compared.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import CheckpointError, import_extra
from ..weights import (
    Header,
    TensorEntry,
    WeightFiles,
    hold_instead,
    read_header,
    read_qwen_header,
)
from .qwen_clip import QwenClipTextEncoder
from .writing import CannotWriteError

QWEN_7B_CONFIG: dict[str, Any] = {
    "text_config": {
        "vocab_size": 152064,
        "hidden_size": 3584,
        "intermediate_size": 18944,
        "num_hidden_layers": 28,
        "num_attention_heads": 28,
        "num_key_value_heads": 4,
        "max_position_embeddings": 128000,
        "rms_norm_eps": 1e-6,
        "rope_theta": 1_000_000.0,
        "rope_scaling": {"type": "mrope", "mrope_section": [16, 24, 24]},
    },
    "vision_config": {
        "depth": 32,
        "hidden_size": 1280,
        "intermediate_size": 3420,
        "num_heads": 16,
        "out_hidden_size": 3584,
        "fullatt_block_indexes": [7, 15, 23, 31],
        "window_size": 112,
        "patch_size": 14,
        "tokens_per_second": 2,
    },
}
"""Qwen2.5-VL-7B-Instruct, for files that come without a config.json."""

CLIP_L_CONFIG: dict[str, Any] = {
    "vocab_size": 49408,
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "projection_dim": 768,
    "hidden_act": "quick_gelu",
}
"""The text model of CLIP ViT-L/14, for files that come without a config.json."""

_PREFIXES = re.compile(r"^(?:(?:model|language_model|text_model|transformer|clip_l)\.)+")
_HEAD = "lm_head."
_UNUSED = re.compile(r"lm_head\.|logit_scale$|text_projection|position_ids$|inv_freq$")
_VISION = "visual."


def needed_tensors(header: Header) -> dict[str, TensorEntry]:
    """Return the tensors that encoding needs, under names without what differs between layouts.

    Args:
        header: Of Qwen2.5-VL or CLIP.

    Returns:
        Name -> entry: "layers.0.self_attn.q_proj.weight", "visual.blocks.0.attn.qkv.weight",
        "encoder.layers.0.mlp.fc1.weight", ...
    """
    return {
        _PREFIXES.sub("", name): entry
        for name, entry in header.tensors.items()
        if not _UNUSED.search(name)
    }


def load_qwen_clip(
    qwen_path: str | Path,
    clip_path: str | Path,
    *,
    qwen_tokenizer: str | Path,
    clip_tokenizer: str | Path,
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
    offload: bool = False,
    qwen_config: dict[str, Any] | None = None,
    clip_config: dict[str, Any] | None = None,
) -> QwenClipTextEncoder:
    """Load Qwen2.5-VL and CLIP.

    Args:
        qwen_path: A .safetensors or .gguf file, or a folder with one or several and a
            config.json. The vision tower of a .gguf file is the mmproj file beside it; without
            one, edit prompts are refused.
        clip_path: The same for CLIP.
        qwen_tokenizer: Folder with Qwen's tokenizer files.
        clip_tokenizer: Folder with CLIP's tokenizer files.
        dtype: Of the weights; None keeps the files' (bf16 where they are in fp8), and matrices of
            GGUF files packed.
        device: Where to encode; "meta" checks names and shapes and reads nothing.
        offload: Whether each model is on `device` only while it encodes.
        qwen_config: Its dimensions where there is no config.json; None is the 7B model.
        clip_config: Its dimensions where there is no config.json; None is ViT-L/14.

    Returns:
        The encoder, its weights in evaluation mode.

    Raises:
        CheckpointError: if a file is missing, damaged, or of another model.
        MissingExtraError: if transformers is not installed, or gguf where a file needs it.
    """
    transformers = import_extra("transformers", "text")
    on_meta = device is not None and torch.device(device).type == "meta"
    qwen_header = read_qwen_header(qwen_path)
    return QwenClipTextEncoder(
        _load_model(
            transformers.Qwen2_5_VLModel,
            transformers.Qwen2_5_VLConfig,
            qwen_header,
            qwen_header.label,
            qwen_config or QWEN_7B_CONFIG,
            dtype,
            on_meta,
        ),
        _load_tokenizer(transformers, Path(qwen_tokenizer)),
        _load_model(
            transformers.CLIPTextModel,
            transformers.CLIPTextConfig,
            read_header(clip_path, "text_encoder"),
            str(clip_path),
            clip_config or CLIP_L_CONFIG,
            dtype,
            on_meta,
        ),
        _load_tokenizer(transformers, Path(clip_tokenizer)),
        device=device,
        offload=offload,
        read_head=partial(read_language_head, qwen_path, dtype),
        why_blind=qwen_header.why_blind,
    )


def read_language_head(path: str | Path, dtype: torch.dtype | None = None) -> Tensor:
    """Read the layer that turns Qwen's states into words, which encoding does not need.

    Args:
        path: Weights of Qwen2.5-VL: a file, or a folder with one or several.
        dtype: Of the result; None keeps the file's (bf16 where it is in 8 bits or fewer).

    Returns:
        Weight (vocabulary, width).

    Raises:
        CannotWriteError: if the file was saved without that layer.
    """
    path = Path(path)
    tensors = {
        _HEAD + name.split(_HEAD, 1)[1]: entry
        for name, entry in read_header(path, "text_encoder").tensors.items()
        if _HEAD in name
    }
    if _HEAD + "weight" not in tensors:
        raise CannotWriteError(
            f"{path.name} holds no lm_head.weight, the layer with which Qwen2.5-VL writes (use a "
            "file of the whole model)"
        )
    with WeightFiles(path, tensors) as files:
        head = files.read(_HEAD + "weight", dtype)
    return head.bfloat16() if head.dtype.itemsize == 1 else head


def load_qwen_clip_folder(
    folder: str | Path,
    *,
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
    offload: bool = False,
) -> QwenClipTextEncoder:
    """Load both from a Diffusers pipeline's folder; see `load_qwen_clip`.

    Args:
        folder: Holds text_encoder, tokenizer (Qwen), text_encoder_2 and tokenizer_2 (CLIP).
        dtype: Of the weights; None keeps the files'.
        device: Where to encode.
        offload: Whether each model is on `device` only while it encodes.
    """
    folder = Path(folder)
    return load_qwen_clip(
        folder / "text_encoder",
        folder / "text_encoder_2",
        qwen_tokenizer=folder / "tokenizer",
        clip_tokenizer=folder / "tokenizer_2",
        dtype=dtype,
        device=device,
        offload=offload,
    )


def _load_tokenizer(transformers: Any, folder: Path) -> Any:
    if not folder.is_dir():
        raise CheckpointError(f"tokenizer folder {folder} does not exist; give its path")
    try:
        return transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{folder} does not hold a tokenizer: {error}") from error


def _load_model(
    model_class: Any,
    config_class: Any,
    header: Header,
    label: str,
    default_config: dict[str, Any],
    dtype: torch.dtype | None,
    on_meta: bool,
) -> nn.Module:
    """Build a model of transformers from weight files, called `label` in messages."""
    path = header.path
    tensors = needed_tensors(header)
    has_config = path.is_dir() and (path / "config.json").is_file()
    if has_config:
        _check_depth(path / "config.json", len(tensors))
    config = config_class.from_pretrained(path) if has_config else config_class(**default_config)
    sees = any(name.startswith(_VISION) for name in tensors)
    if hasattr(config, "vision_config") and not sees:
        config.vision_config.depth = 0
    with torch.device("meta"):
        model = model_class(config)
    expected = {name: tuple(tensor.shape) for name, tensor in model.named_parameters()}
    unseen: dict[str, tuple[int, ...]] = {}
    if not sees:
        unseen = {name: expected.pop(name) for name in [*expected] if name.startswith(_VISION)}
    names = {_PREFIXES.sub("", name): name for name in expected}
    with WeightFiles(path, tensors) as files:
        found = {names.get(core, core): entry.shape for core, entry in files.entries.items()}
        _check(label, model_class.__name__, expected, found)
        if on_meta:
            return model
        packings: dict[str, str] = {}
        if dtype is None:
            dtype = torch.bfloat16 if files.main_dtype.itemsize == 1 else files.main_dtype
            packings = {
                core: entry.packing for core, entry in files.entries.items() if entry.packing
            }
        state = {names[core]: files.read(core, dtype) for core in files if core not in packings}
        packed = {names[core]: files.read_packed(core) for core in packings}
    # in the place of packed matrices something of their shape that takes no memory
    state |= {name: torch.zeros((), dtype=dtype).expand(expected[name]) for name in packed}
    # what is left of a tower without blocks; it is dropped below, and must not be drawn at random
    state |= {name: torch.zeros(shape, dtype=dtype) for name, shape in unseen.items()}
    # From a state dict transformers assigns the tensors instead of copying them and fills in the
    # buffers that no file holds.
    model = model_class.from_pretrained(None, config=config, state_dict=state, dtype=dtype)
    for core, packing in packings.items():
        name = names[core]
        hold_instead(model, name.removesuffix(".weight"), packed[name], packing, dtype)
    if unseen:
        model.visual = None
    return model


def _check_depth(config: Path, num_tensors: int) -> None:
    """Refuse a config.json that asks for more layers than a file could fill.

    Before transformers reads it, which makes lists of that length.
    """
    try:
        stated = json.loads(config.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{config} is no JSON: download the folder again") from error
    parts = [stated, *stated.values()] if isinstance(stated, dict) else []
    for part in (each for each in parts if isinstance(each, dict)):
        for name in ("num_hidden_layers", "depth"):
            count = part.get(name, 0)
            if not isinstance(count, int) or count > num_tensors:
                raise CheckpointError(
                    f"{config} says {name} {count!r:.20} and there are {num_tensors} tensors: "
                    "download the folder again"
                )


def _check(
    label: str,
    model: str,
    expected: Mapping[str, tuple[int, ...]],
    found: Mapping[str, tuple[int, ...]],
) -> None:
    """Raise unless the tensors are the model's, in one sentence."""
    missing = sorted(expected.keys() - found.keys())
    unexpected = sorted(found.keys() - expected.keys())
    if missing or unexpected:
        problems = [
            f"{len(names)} {kind} ({', '.join(names[:3])}{', ...' if len(names) > 3 else ''})"
            for kind, names in (("missing", missing), ("unexpected", unexpected))
            if names
        ]
        raise CheckpointError(
            f"{label} is not a {model}: of {len(expected)} tensors, {' and '.join(problems)}; "
            "give the file of the right text encoder"
        )
    for name, shape in expected.items():
        if found[name] != shape:
            raise CheckpointError(
                f"{label} is a {model} of another size: {name} has shape {found[name]}, "
                f"expected {shape}"
            )
