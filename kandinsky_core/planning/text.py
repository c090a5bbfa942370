"""How large the text encoders of the family are, from their dimensions.

Letters: L tokens, D width, F feed-forward width.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from ..checkpoint import identify
from ..family.settings import Task
from ..nano import nano_path
from ..text import CLIP_LENGTH, TASK_TEMPLATES, TEMPLATES
from ..text.qwen_clip_load import CLIP_L_CONFIG, QWEN_7B_CONFIG

IMAGE_CELL = 28
"""Pixels of an image, height and width, for one of Qwen's tokens."""
NANO_TOKENS = 64
"""Most words that nano reads."""


@dataclass(frozen=True)
class TextSize:
    """The text encoders of a job; all but `tokens` are bytes."""

    weights: int
    """Bytes of the weights of all encoders."""
    least_weights: int
    """Of the embedding, which is never divided, and one layer."""
    work: int
    """Tensors beside the weights, roughly."""
    tokens: int
    """Text tokens that the transformer gets, at most."""


def qwen_parameters() -> int:
    """Return the parameters of Qwen2.5-VL-7B without its language head, vision tower included."""
    vision = QWEN_7B_CONFIG["vision_config"]
    d = QWEN_7B_CONFIG["text_config"]["hidden_size"]
    v, g = vision["hidden_size"], vision["intermediate_size"]
    block = 3 * (v * v + v) + v * v + v + 3 * v * g + 2 * g + v + 2 * v
    merged = 4 * v
    patches = 3 * 2 * vision["patch_size"] ** 2 * v
    merger = v + merged * merged + merged + merged * d + d
    return _language_parameters() + vision["depth"] * block + patches + merger


def clip_parameters() -> int:
    """Return the parameters of CLIP ViT-L/14's text model."""
    d, f = CLIP_L_CONFIG["hidden_size"], CLIP_L_CONFIG["intermediate_size"]
    layer = 4 * (d * d + d) + 2 * d * f + f + d + 4 * d
    embeddings = (CLIP_L_CONFIG["vocab_size"] + CLIP_LENGTH) * d
    return embeddings + CLIP_L_CONFIG["num_hidden_layers"] * layer + 2 * d


def _language_parameters() -> int:
    text = QWEN_7B_CONFIG["text_config"]
    d = text["hidden_size"]
    return text["num_hidden_layers"] * _qwen_layer() + text["vocab_size"] * d + d


def _qwen_layer() -> int:
    text = QWEN_7B_CONFIG["text_config"]
    d, f = text["hidden_size"], text["intermediate_size"]
    shared = d * text["num_key_value_heads"] // text["num_attention_heads"]
    attention = d * d + d + 2 * (d * shared + shared) + d * d
    return attention + 3 * d * f + 2 * d


def large_text_size(
    task: Task, dtype: torch.dtype, size: tuple[int, int], bits: float | None = None
) -> TextSize:
    """Count Qwen2.5-VL-7B with CLIP ViT-L/14.

    Args:
        task: Chooses the template and its cap.
        dtype: Of the weights.
        size: Height and width in pixels of the image that an edit shows to Qwen at half size.
        bits: Of a weight of Qwen's language model where a GGUF file packs it; CLIP and the vision
            tower, which is a file of its own, are in `dtype`.

    Returns:
        Their size.
    """
    template = TEMPLATES[TASK_TEMPLATES[task]]
    image = 0
    if TASK_TEMPLATES[task] == "edit":
        image = (size[0] // 2 // IMAGE_CELL) * (size[1] // 2 // IMAGE_CELL)
    # an edit has no cap; its prompt is taken to be as long as an image's may be
    prompt = (template.max_tokens or TEMPLATES["image"].max_tokens or 0) + image
    text = QWEN_7B_CONFIG["text_config"]
    d, f = text["hidden_size"], text["intermediate_size"]
    stored, item = dtype.itemsize, max(2, dtype.itemsize)
    packed = 8 * stored if bits is None else bits  # bits of a weight
    read = template.crop + prompt
    # three hidden layers, and the stream with its fp32 copies and queries to results
    work = read * (3 * f + 8 * d) * item + (d * f * item if packed <= 8 else 0)
    embedding = text["vocab_size"] * d
    language = _language_parameters()
    others = qwen_parameters() - language + clip_parameters()
    return TextSize(
        int(language * packed / 8) + others * stored,
        int((embedding + _qwen_layer()) * packed / 8),
        work,
        prompt,
    )


def nano_text_size() -> TextSize:
    """Count the bundled encoder, in fp32."""
    weights = 4 * identify(nano_path("text_encoder"), component="text_encoder").num_parameters
    return TextSize(weights, weights, weights // 4, NANO_TOKENS)
