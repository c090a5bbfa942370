"""The host's own kandinsky5 CLIP (ComfyUI 0.4.0 and later), encoding as the reference does.

Its two models are the ones that are needed. What differs is around them: it takes Qwen's states
before the final norm, does not cut long prompts, and knows neither image nor edit prompts.
"""

from __future__ import annotations

import logging
from typing import Any

import comfy.sd
import torch
from torch import Tensor

from ....kandinsky_core.text import NO_VISION
from ..prompt import put_triggers
from .qwen import CLIP_L, QWEN, QwenClipTokenizer, encode_tokens, has_pictures, set_device

LARGEST_WEIGHT = 1e3
"""No weight of Qwen's attention that was trained comes near it."""


class _ReferenceText:
    """The models of a native CLIP behind ComfyUI's contract for text models."""

    def __init__(self, native: Any) -> None:
        self._models = getattr(native, QWEN), getattr(native, CLIP_L)

    def set_clip_options(self, options: dict[str, Any]) -> None:
        """Pass on where to compute; see `set_device`."""
        set_device(self._models, options)

    def reset_clip_options(self) -> None:
        """Go back to what the native CLIP set."""
        for model in self._models:
            model.reset_clip_options()

    def encode_token_weights(self, tokens: dict[str, Any]) -> tuple[Tensor, Tensor, dict[str, Any]]:
        """Encode what `QwenClipTokenizer` made: tokens (1, L, 3584), pooled (1, 768).

        Raises:
            ValueError: There are images, and no vision tower was loaded.
        """
        qwen, clip = self._models
        if has_pictures(tokens) and not _sees(qwen.transformer.visual):
            raise ValueError(
                f"clip: {NO_VISION}: the file that the native loader read has none; load the whole "
                "model there, e.g. qwen_2.5_vl_7b.safetensors."
            )
        qwen.set_clip_options({"layer": None})  # the host's word for: after the final norm
        try:
            return encode_tokens(qwen, clip, tokens)
        finally:
            self.reset_clip_options()


def _sees(tower: Any) -> bool:
    """Return whether the vision tower of a native CLIP was loaded.

    The host builds one for files that have none too, and does not keep that it was missing. Its
    layers then hold what was in memory: zeros, or numbers that no weight has.
    """
    return all(_is_weight(block.attn.qkv.weight) for block in tower.blocks)


def _is_weight(tensor: Tensor | None) -> bool:
    if tensor is None or tensor.is_meta:
        return False
    low, high = tensor.to(torch.float32).aminmax()
    scaled = tensor.itemsize == 1
    return bool(low < high) and (scaled or max(-low.item(), high.item()) < LARGEST_WEIGHT)


class _TriggeredTokenizer:
    """A native tokenizer whose prompts begin with the triggers of the CLIP's LoRAs."""

    def __init__(self, native: Any) -> None:
        self._native = native

    def __getattr__(self, name: str) -> Any:
        return getattr(self._native, name)

    def tokenize_with_weights(self, text: str, return_word_ids: bool = False, **given: Any) -> Any:
        """Tokenize as the native one does."""
        text = put_triggers(text, given.get("tokenizer_options"))
        return self._native.tokenize_with_weights(text, return_word_ids, **given)


def with_trigger_option(clip: comfy.sd.CLIP) -> comfy.sd.CLIP:
    """Copy a native CLIP so that it heeds the tokenizer option `TRIGGERS`, in native nodes too."""
    copy = clip.clone()
    if not isinstance(copy.tokenizer, _TriggeredTokenizer):
        copy.tokenizer = _TriggeredTokenizer(copy.tokenizer)
    return copy


def is_native_pair(clip: comfy.sd.CLIP) -> bool:
    """Return whether a CLIP holds the host's own Qwen2.5-VL and CLIP-L, as its kandinsky5 type
    does."""
    model = getattr(clip, "cond_stage_model", None)
    parts = [getattr(model, name, None) for name in (QWEN, CLIP_L)]
    return all(hasattr(part, "encode_token_weights") for part in parts)


def with_reference_text(clip: comfy.sd.CLIP) -> comfy.sd.CLIP:
    """Copy a native CLIP; the copy shares its weights and encodes with the reference's templates,
    cuts and final norm."""
    logging.info(
        "Kandinsky 5: clip is ComfyUI's own kandinsky5 encoder; its models are used here with the "
        "reference's templates, limits and final norm, so the text differs from CLIP Text Encode's."
    )
    copy = clip.clone()
    copy.cond_stage_model = _ReferenceText(clip.cond_stage_model)
    copy.tokenizer = QwenClipTokenizer()
    return copy
