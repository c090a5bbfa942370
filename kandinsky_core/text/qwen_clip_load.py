"""Builds the large text encoders from .safetensors files or from folders in Hugging Face layout.

Weight files are told apart by their tensors' names alone, whichever program wrote them: the
prefixes that differ between versions of transformers, Diffusers folders and ComfyUI's single files
are taken off on both sides before the names are compared.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from ..errors import CheckpointError, import_extra
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
_UNUSED = re.compile(r"lm_head\.|logit_scale$|text_projection|position_ids$|inv_freq$|scaled_fp8$")
_SCALES = (".scale_weight", ".weight_scale")
_QUANTISATION = (*_SCALES, ".scale_input", ".input_scale", ".comfy_quant")


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
    """Loads Qwen2.5-VL and CLIP.

    Args:
        qwen_path: A .safetensors file, or a folder with one or several and a config.json.
        clip_path: The same for CLIP.
        qwen_tokenizer: Folder with Qwen's tokenizer files.
        clip_tokenizer: Folder with CLIP's tokenizer files.
        dtype: Of the weights; None keeps the files' (bf16 where they are in fp8).
        device: Where to encode.
        offload: Whether each model is on `device` only while it encodes.
        qwen_config: Its dimensions where there is no config.json; None is the 7B model.
        clip_config: Its dimensions where there is no config.json; None is ViT-L/14.

    Returns:
        The encoder, its weights in evaluation mode.

    Raises:
        CheckpointError: if a file is missing, damaged, or of another model.
        MissingExtraError: if transformers is not installed.
    """
    transformers = import_extra("transformers", "text")
    return QwenClipTextEncoder(
        _load_model(
            transformers.Qwen2_5_VLModel,
            transformers.Qwen2_5_VLConfig,
            Path(qwen_path),
            qwen_config or QWEN_7B_CONFIG,
            dtype,
        ),
        _load_tokenizer(transformers, Path(qwen_tokenizer)),
        _load_model(
            transformers.CLIPTextModel,
            transformers.CLIPTextConfig,
            Path(clip_path),
            clip_config or CLIP_L_CONFIG,
            dtype,
        ),
        _load_tokenizer(transformers, Path(clip_tokenizer)),
        device=device,
        offload=offload,
        read_head=partial(read_language_head, qwen_path, dtype),
    )


def read_language_head(path: str | Path, dtype: torch.dtype | None = None) -> Tensor:
    """Reads the layer that turns Qwen's states into words, which encoding does not need.

    Args:
        path: A .safetensors file of Qwen2.5-VL, or a folder with one or several.
        dtype: Of the result; None keeps the file's (bf16 where it is in fp8).

    Returns:
        Weight (vocabulary, width).

    Raises:
        CannotWriteError: if the file was saved without that layer.
    """
    path = Path(path)
    parts: dict[str, Tensor] = {}
    for file in _weight_files(path):
        with safe_open(file, framework="pt") as opened:
            names = [name for name in opened.keys() if _HEAD in name]  # noqa: SIM118
            parts |= {name: opened.get_tensor(name) for name in names}
    return language_head(parts, path, dtype)


def language_head(
    parts: Mapping[str, Tensor], path: Path, dtype: torch.dtype | None = None
) -> Tensor:
    """Makes the language head's weight of what a file holds of it.

    Args:
        parts: Its tensors by name: lm_head.weight and, in fp8, a scale.
        path: Where they are from.
        dtype: Of the result; None keeps theirs (bf16 where they are in fp8).

    Returns:
        Weight (vocabulary, width).

    Raises:
        CannotWriteError: if the weight is not there.
    """
    own = {_HEAD + name.split(_HEAD, 1)[1]: tensor for name, tensor in parts.items()}
    state = _unscaled(own, dtype)
    if _HEAD + "weight" not in state:
        raise CannotWriteError(
            f"{path.name} holds no lm_head.weight, the layer with which Qwen2.5-VL writes (use a "
            "file of the whole model)"
        )
    return state[_HEAD + "weight"]


def load_qwen_clip_folder(
    folder: str | Path,
    *,
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
    offload: bool = False,
) -> QwenClipTextEncoder:
    """Loads both from a Diffusers pipeline's folder; see `load_qwen_clip`.

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
    path: Path,
    default_config: dict[str, Any],
    dtype: torch.dtype | None,
) -> nn.Module:
    """Builds a model of transformers from a weight file or folder."""
    files = _weight_files(path)
    has_config = path.is_dir() and (path / "config.json").is_file()
    config = config_class.from_pretrained(path) if has_config else config_class(**default_config)
    with torch.device("meta"):
        expected = {name: tuple(t.shape) for name, t in model_class(config).named_parameters()}
    state = _read_tensors(files, dtype)
    names = {_PREFIXES.sub("", name): name for name in expected}
    state = {names.get(core, core): tensor for core, tensor in state.items()}
    _check(path, model_class.__name__, expected, state)
    # From a state dict transformers assigns the tensors instead of copying them and fills in the
    # buffers that no file holds.
    dtype = dtype or max(state.values(), key=Tensor.numel).dtype
    return model_class.from_pretrained(None, config=config, state_dict=state, dtype=dtype)


def _weight_files(path: Path) -> list[Path]:
    files = sorted(path.glob("*.safetensors")) if path.is_dir() else [path]
    if not files or not all(file.is_file() for file in files):
        raise CheckpointError(
            f"no .safetensors file at {path}; give a weight file or a folder that holds them"
        )
    return files


def _read_tensors(files: Iterable[Path], dtype: torch.dtype | None) -> dict[str, Tensor]:
    """Reads tensors by name without prefix, undoing fp8 scaling; drops what no encoder uses."""
    raw: dict[str, Tensor] = {}
    for path in files:
        try:
            with safe_open(path, framework="pt") as file:
                for name in file.keys():  # noqa: SIM118  not a mapping
                    if not _UNUSED.search(name):
                        raw[_PREFIXES.sub("", name)] = file.get_tensor(name)
        except SafetensorError as error:
            raise CheckpointError(f"{path} is not a readable safetensors file: {error}") from error
    return _unscaled(raw, dtype)


def _unscaled(raw: Mapping[str, Tensor], dtype: torch.dtype | None) -> dict[str, Tensor]:
    """Undoes fp8 scaling and drops what belongs to it."""
    state: dict[str, Tensor] = {}
    for name, tensor in raw.items():
        if name.endswith(_QUANTISATION):
            continue
        if tensor.dtype.itemsize == 1:
            layer = name.removesuffix(".weight")
            scale = next((raw[layer + s] for s in _SCALES if layer + s in raw), torch.ones(()))
            tensor = (tensor.float() * scale.float()).to(dtype or torch.bfloat16)
        state[name] = tensor if dtype is None else tensor.to(dtype)
    return state


def _check(
    path: Path, model: str, expected: dict[str, tuple[int, ...]], state: dict[str, Tensor]
) -> None:
    """Raises unless the tensors are the model's, in one sentence."""
    missing = sorted(expected.keys() - state.keys())
    unexpected = sorted(state.keys() - expected.keys())
    if missing or unexpected:
        problems = [
            f"{len(names)} {kind} ({', '.join(names[:3])}{', ...' if len(names) > 3 else ''})"
            for kind, names in (("missing", missing), ("unexpected", unexpected))
            if names
        ]
        raise CheckpointError(
            f"{path} is not a {model}: of {len(expected)} tensors, {' and '.join(problems)}; "
            "give the file of the right text encoder"
        )
    for name, shape in expected.items():
        if tuple(state[name].shape) != shape:
            raise CheckpointError(
                f"{path} is a {model} of another size: {name} has shape "
                f"{tuple(state[name].shape)}, expected {shape}"
            )
