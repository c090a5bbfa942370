"""What is done to a prompt before any encoder sees it, and how encoded ones are told apart."""

from __future__ import annotations

import logging
import re

TEXT_MARK = "k5_text"
"""Conditioning key: encoded as the reference does; what native nodes encode lacks it."""

_WEIGHTED = re.compile(r"(?<!\\)\(([^()]*):\s*[-+]?\d*\.?\d+\s*\)")


def strip_weights(text: str) -> str:
    """Replace `(words:1.2)` by `words`, inside out; all else is left as it is.

    These encoders read sentences, and weights mean nothing to the transformers that were trained
    on them; left in, the brackets and numbers would be read as text.
    """
    stripped = text
    while (shorter := _WEIGHTED.sub(r"\1", stripped)) != stripped:
        stripped = shorter
    if stripped != text:
        logging.warning(
            "Kandinsky 5: weights such as (word:1.2) have no effect on these text encoders; "
            "they were taken out of the prompt."
        )
    return stripped


def name_foreign_text(which: str) -> None:
    """Log how text of other nodes differs from what the model was trained with.

    Args:
        which: "positive" or "negative".
    """
    logging.warning(
        "Kandinsky 5: %s was encoded by another node. It is taken as it is, but ComfyUI's own "
        "kandinsky5 encoder gives Qwen's states before the final norm and does not cut long "
        "prompts, unlike the text that the model was trained with; Text Encode (Kandinsky 5) takes "
        "that CLIP too.",
        which,
    )
