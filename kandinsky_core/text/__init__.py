"""Prompts to conditioning: the protocol, the nano family's encoder, Qwen2.5-VL with CLIP."""

from __future__ import annotations

from .nano import (
    NanoTextEncoder,
    NanoTokenizer,
    load_nano_text_encoder,
    save_nano_text_encoder,
)
from .protocol import Task, TextConditioning, TextEncoder

__all__ = [
    "NanoTextEncoder",
    "NanoTokenizer",
    "Task",
    "TextConditioning",
    "TextEncoder",
    "load_nano_text_encoder",
    "save_nano_text_encoder",
]
