"""Prompts to conditioning, and short prompts to long ones.

The protocol, the nano family's encoder, Qwen2.5-VL with CLIP, and prompt expansion.
"""

from __future__ import annotations

from ..family.settings import VIDEO_NEGATIVE_PROMPT
from .expand import (
    EXPANSION_TEMPERATURE,
    EXPANSION_TOKENS,
    LANGUAGES,
    Expansion,
    Language,
    expand_prompt,
)
from .nano import (
    NanoTextEncoder,
    NanoTokenizer,
    load_nano_text_encoder,
    save_nano_text_encoder,
)
from .protocol import Task, TextConditioning, TextEncoder
from .qwen_clip import CLIP_LENGTH, NO_VISION, QwenClipTextEncoder, halve_images
from .qwen_clip_load import (
    load_qwen_clip,
    load_qwen_clip_folder,
    needed_tensors,
    read_language_head,
)
from .templates import IMAGE_TAGS, TASK_TEMPLATES, TEMPLATES, Template
from .triggers import add_triggers
from .vision import fit_for_qwen
from .writing import (
    MAX_TEMPERATURE,
    CannotWriteError,
    TokenChooser,
    Writer,
    Written,
    stop_ids,
    write_with_transformers,
)

__all__ = [
    "CLIP_LENGTH",
    "EXPANSION_TEMPERATURE",
    "EXPANSION_TOKENS",
    "IMAGE_TAGS",
    "LANGUAGES",
    "MAX_TEMPERATURE",
    "NO_VISION",
    "TASK_TEMPLATES",
    "TEMPLATES",
    "VIDEO_NEGATIVE_PROMPT",
    "CannotWriteError",
    "Expansion",
    "Language",
    "NanoTextEncoder",
    "NanoTokenizer",
    "QwenClipTextEncoder",
    "Task",
    "Template",
    "TextConditioning",
    "TextEncoder",
    "TokenChooser",
    "Writer",
    "Written",
    "add_triggers",
    "expand_prompt",
    "fit_for_qwen",
    "halve_images",
    "load_nano_text_encoder",
    "load_qwen_clip",
    "load_qwen_clip_folder",
    "needed_tensors",
    "read_language_head",
    "save_nano_text_encoder",
    "stop_ids",
    "write_with_transformers",
]
