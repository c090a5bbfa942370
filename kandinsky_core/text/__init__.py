"""Prompts to conditioning: the protocol, the nano family's encoder, Qwen2.5-VL with CLIP."""

from __future__ import annotations

from ..settings import VIDEO_NEGATIVE_PROMPT
from .nano import (
    NanoTextEncoder,
    NanoTokenizer,
    load_nano_text_encoder,
    save_nano_text_encoder,
)
from .protocol import Task, TextConditioning, TextEncoder
from .qwen_clip import CLIP_LENGTH, NO_VISION, QwenClipTextEncoder, halve_images
from .qwen_clip_load import load_qwen_clip, load_qwen_clip_folder
from .templates import (
    END_TAG,
    IMAGE_TAGS,
    TASK_TEMPLATES,
    TEMPLATES,
    Template,
)

__all__ = [
    "CLIP_LENGTH",
    "END_TAG",
    "IMAGE_TAGS",
    "NO_VISION",
    "TASK_TEMPLATES",
    "TEMPLATES",
    "VIDEO_NEGATIVE_PROMPT",
    "NanoTextEncoder",
    "NanoTokenizer",
    "QwenClipTextEncoder",
    "Task",
    "Template",
    "TextConditioning",
    "TextEncoder",
    "halve_images",
    "load_nano_text_encoder",
    "load_qwen_clip",
    "load_qwen_clip_folder",
    "save_nano_text_encoder",
]
