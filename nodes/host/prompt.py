"""What is done to a prompt before any encoder sees it."""

from __future__ import annotations

import logging
import re

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
