"""The host's own kandinsky5 CLIP (ComfyUI 0.4.0 and later), encoding as the reference does.

Its two models are the ones that are needed. What differs is around them: it takes Qwen's states
before the final norm, does not cut long prompts, and knows neither image nor edit prompts.
"""

from __future__ import annotations

import logging
from typing import Any

import comfy.sd
from torch import Tensor

from .text_qwen import CLIP_L, QWEN, QwenClipTokenizer, encode_tokens


class _ReferenceText:
    """The models of a native CLIP behind ComfyUI's contract for text models."""

    def __init__(self, native: Any) -> None:
        self._native = native

    def set_clip_options(self, options: dict[str, Any]) -> None:
        """ComfyUI asks for a layer here (CLIP skip); the reference always takes the last."""

    def reset_clip_options(self) -> None:
        """Nothing is ever set from outside."""

    def encode_token_weights(self, tokens: dict[str, Any]) -> tuple[Tensor, Tensor, dict[str, Any]]:
        """Encode what `QwenClipTokenizer` made: tokens (1, L, 3584), pooled (1, 768)."""
        qwen, clip = getattr(self._native, QWEN), getattr(self._native, CLIP_L)
        clip.reset_clip_options()
        qwen.set_clip_options({"layer": None})  # the host's word for: after the final norm
        try:
            return encode_tokens(qwen, clip, tokens)
        finally:
            qwen.reset_clip_options()


def is_native_pair(clip: comfy.sd.CLIP) -> bool:
    """Whether a CLIP holds the host's own Qwen2.5-VL and CLIP-L, as its kandinsky5 type does."""
    parts = [getattr(clip.cond_stage_model, name, None) for name in (QWEN, CLIP_L)]
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
