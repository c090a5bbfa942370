"""What is done to a prompt before any encoder sees it, and how encoded ones are told apart."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from typing import Any

from ...kandinsky_core.text import add_triggers

TRIGGERS = "k5_triggers"
"""Tokenizer option: texts of LoRAs that belong before the prompt, a tuple."""

TEXT_MARK = "k5_text"
"""Conditioning key: encoded as the reference does; what native nodes encode lacks it."""

# a time (10:30) and a ratio (16:9) are prose: no digit before the colon, and a weight as people
# write it, with a point and from -3 to 3
_WEIGHTED = re.compile(r"(?<!\\)\(([^()]*[^()\d\s]):[-+]?(?:[0-2]?\.\d+|[0-3]\.0*)\)")


def prepare_prompt(text: str, options: Mapping[str, Any] | None) -> str:
    """Return what an encoder reads: the prompt without weights, after the triggers of a CLIP's
    LoRAs.

    Args:
        text: What the user wrote; an empty prompt stays empty, for it stands for no prompt.
        options: Tokenizer options of the CLIP.
    """
    return put_triggers(strip_weights(text), options)


def put_triggers(text: str, options: Mapping[str, Any] | None) -> str:
    """Return the prompt after the triggers of a CLIP's LoRAs; an empty one stays empty."""
    return add_triggers(text, (options or {}).get(TRIGGERS, ())) if text.strip() else text


def strip_weights(text: str) -> str:
    """Replace `(words:1.2)` by `words`, inside out; all else is left as it is.

    These encoders read sentences, and weights mean nothing to the transformers that were trained
    on them; left in, the brackets and numbers would be read as text. What could be prose stays: a
    weight is a decimal number right behind the colon, and no digit stands before that.
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
