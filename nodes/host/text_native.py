"""The host's own kandinsky5 CLIP (ComfyUI 0.4.0 and later), encoding as the reference does.

Its two models are the ones that are needed. What differs is around them: it takes Qwen's states
before the final norm, does not cut long prompts, and knows neither image nor edit prompts.
"""

from __future__ import annotations

import logging
from typing import Any

import comfy.sd
from torch import Tensor

from .text_qwen import CLIP_L, QWEN, QwenClipTokenizer, encode_tokens, set_device


class _ReferenceText:
    """The models of a native CLIP behind ComfyUI's contract for text models."""

    def __init__(self, native: Any) -> None:
        self._models = getattr(native, QWEN), getattr(native, CLIP_L)

    def set_clip_options(self, options: dict[str, Any]) -> None:
        """Pass on where to compute; see `set_device`."""
        set_device(self._models, options)

    def reset_clip_options(self) -> None:
        """Back to what the native CLIP set."""
        for model in self._models:
            model.reset_clip_options()

    def encode_token_weights(self, tokens: dict[str, Any]) -> tuple[Tensor, Tensor, dict[str, Any]]:
        """Encode what `QwenClipTokenizer` made: tokens (1, L, 3584), pooled (1, 768)."""
        qwen, clip = self._models
        qwen.set_clip_options({"layer": None})  # the host's word for: after the final norm
        try:
            return encode_tokens(qwen, clip, tokens)
        finally:
            self.reset_clip_options()


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
