"""CLIP: the family's text encoders as ComfyUI's CLIP object, for native CLIPTextEncode and ours.

A CLIP is a tokenizer and a model; ComfyUI carries a dictionary of token lists from one to the
other. Letters: B batch, L text tokens.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import comfy.sd
import torch
from torch import Tensor, nn

from ....kandinsky_core.checkpoint import identify
from ....kandinsky_core.text import NanoTextEncoder, Task, load_nano_text_encoder
from ....kandinsky_core.weights import mmproj_files
from ..files import NANO, find_path
from ..model.conditions import SEEN
from ..packed import PackedOperations, PackedPatcher
from ..prompt import TEXT_MARK, prepare_prompt
from ..run import set_conditioning
from .native import is_native_pair, with_reference_text
from .qwen import QwenClipModel, QwenClipTokenizer
from .weights import read_qwen_clip

Tokens = dict[str, Any]
"""Name of an encoder -> one list of (id, weight) pairs."""


@dataclass
class _Target:
    """What comfy.sd.CLIP builds from."""

    clip: Callable[..., nn.Module]
    tokenizer: Callable[..., Any]
    params: dict[str, Any] = field(default_factory=dict)


class NanoTokenizer:
    """Words to ids."""

    KEY = "k5_nano"

    def __init__(self, encoder: NanoTextEncoder) -> None:
        self._encoder = encoder

    def tokenize_with_weights(
        self,
        text: str,
        return_word_ids: bool = False,
        *,
        tokenizer_options: dict[str, Any] | None = None,
        **_: Any,
    ) -> Tokens:
        """Tokenize a prompt; words that the encoder never learnt are named in the log."""
        text = prepare_prompt(text, tokenizer_options)
        unknown = self._encoder.unknown_words(text)
        if unknown:
            logging.warning(
                "Kandinsky 5: the nano text encoder does not know: %s. It reads each as the same "
                "unknown word; the help page of Load Text Encoders lists what it knows.",
                ", ".join(unknown),
            )
        ids, _mask = self._encoder.tokenizer([text])
        tail = (0,) if return_word_ids else ()
        return {self.KEY: [[(int(token), 1.0, *tail) for token in ids[0]]]}

    def untokenize(self, pairs: list[tuple[Any, ...]]) -> list[tuple[Any, str]]:
        """Pair each token with its word (ids only: the words stay in the encoder)."""
        return [(pair, str(pair[0])) for pair in pairs]

    def state_dict(self) -> dict[str, Tensor]:
        return {}


class NanoModel(nn.Module):
    """The nano encoder behind ComfyUI's contract for text models."""

    def __init__(self, encoder: NanoTextEncoder, dtype: torch.dtype) -> None:
        super().__init__()
        self.encoder = encoder
        self.dtypes = {dtype}

    def set_clip_options(self, options: dict[str, Any]) -> None:
        """Ignore the layer that ComfyUI asks for here (CLIP skip): this encoder has none to
        offer."""

    def reset_clip_options(self) -> None:
        """Do nothing: nothing is ever set."""

    def encode_token_weights(self, tokens: Tokens) -> tuple[Tensor, Tensor, dict[str, Any]]:
        """Encode what `NanoTokenizer` made: tokens (1, L, D), pooled (1, D)."""
        pairs = tokens[NanoTokenizer.KEY][0]
        device = self.encoder.word_embeddings.weight.device
        ids = torch.tensor([[pair[0] for pair in pairs]], device=device)
        states, pooled = self.encoder(ids, torch.ones_like(ids, dtype=torch.bool))
        return states.float().cpu(), pooled.float().cpu(), {TEXT_MARK: True}

    def load_sd(self, sd: dict[str, Tensor]) -> tuple[list[str], list[str]]:
        result = self.encoder.load_state_dict(sd, strict=False)
        return result.missing_keys, result.unexpected_keys


def load_text_encoders(qwen: Path, clip: Path | None, task: Task) -> comfy.sd.CLIP:
    """Make a CLIP.

    Args:
        qwen: Qwen2.5-VL file; without `clip`, a nano text encoder.
        clip: CLIP ViT-L/14 file.
        task: What native nodes encode for; ours pass their own.

    Raises:
        ValueError: A file is damaged or another model's.
    """
    loaded = _load_nano(qwen) if clip is None else _load_qwen_clip(qwen, clip)
    loaded.set_tokenizer_option("task", task)
    return loaded


def fingerprint_vision(name: str) -> str:
    """Return what changes when a vision tower (mmproj) is put beside Qwen or taken away.

    Args:
        name: Entry of the loader's list; of an unknown one only the name counts.
    """
    path = None if name == NANO else find_path("text_encoders", name)
    files = [] if path is None else mmproj_files(path)
    return " ".join([name, *(f"{file.name} {file.stat().st_mtime_ns}" for file in files)])


def _load_nano(path: Path) -> comfy.sd.CLIP:
    variant = identify(path, component="text_encoder").variant
    if variant != "nano":
        raise ValueError(
            f"clip_name: {path.name} is a {variant} text encoder and works beside another one; "
            "choose Qwen2.5-VL as qwen_name and CLIP-L as clip_name."
        )
    dtype = torch.float32  # a few megabytes
    encoder = load_nano_text_encoder(path, ops=PackedOperations, dtype=dtype)
    encoder.requires_grad_(False)
    target = _Target(
        clip=lambda **_: NanoModel(encoder, dtype), tokenizer=lambda **_: NanoTokenizer(encoder)
    )
    return comfy.sd.CLIP(target, model_options={"dtype": dtype})


def _load_qwen_clip(qwen: Path, clip: Path) -> comfy.sd.CLIP:
    weights = read_qwen_clip(qwen, clip)
    target = _Target(
        clip=lambda **params: QwenClipModel(weights, **params), tokenizer=QwenClipTokenizer
    )
    if not weights.qwen.stays_packed:
        return comfy.sd.CLIP(target, parameters=weights.num_parameters)
    target.tokenizer = partial(QwenClipTokenizer, packed_file=qwen)
    # layers are made whole before they take packed weights, which only there is cheap
    options = {"initial_device": torch.device("cpu")}
    loaded = comfy.sd.CLIP(target, parameters=weights.num_parameters, model_options=options)
    own = loaded.patcher
    loaded.patcher = PackedPatcher(own.model, own.load_device, own.offload_device)
    loaded.patcher.is_clip = True
    return loaded


def is_ours(clip: comfy.sd.CLIP) -> bool:
    """Return whether a CLIP comes from `load_text_encoders`."""
    return isinstance(clip.tokenizer, NanoTokenizer | QwenClipTokenizer)


def encode_text(
    clip: comfy.sd.CLIP, text: str, task: Task, images: Tensor | None = None
) -> list[Any]:
    """Encode a prompt to CONDITIONING.

    Args:
        clip: From `load_text_encoders`, or the host's own kandinsky5 CLIP.
        text: The prompt.
        task: Chooses the template.
        images: For an edit, source images (B, 3, H, W) in [-1, 1]: the prompt is encoded with
            each of them, one row of the result for each.

    Raises:
        ValueError: The CLIP is of another family.
    """
    if is_native_pair(clip):
        clip = with_reference_text(clip)
    if not is_ours(clip):
        raise ValueError(
            "clip: expected one from Load Text Encoders (Kandinsky 5), found "
            f"{type(clip.tokenizer).__name__}; other encoders give text this model cannot read."
        )
    options = {"task": task}
    if task != "i2i" or images is None:
        return clip.encode_from_tokens_scheduled(clip.tokenize(text, tokenizer_options=options))
    encoded = [
        clip.encode_from_tokens_scheduled(
            clip.tokenize(text, tokenizer_options=options, images=image)
        )
        for image in images.split(1)
    ]
    joined = [
        [
            torch.cat([tokens for tokens, _ in rows]),
            {**rows[0][1], "pooled_output": torch.cat([row["pooled_output"] for _, row in rows])},
        ]
        for rows in zip(*encoded, strict=True)  # one entry, or one for each scheduled hook
    ]
    return set_conditioning(joined, {SEEN: (len(images), *images.shape[-2:])})
