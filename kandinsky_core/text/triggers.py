"""Trigger texts of LoRAs, which belong before the prompt."""

from __future__ import annotations

import re
from collections.abc import Iterable


def add_triggers(prompt: str, triggers: Iterable[str]) -> str:
    """Put the trigger texts of LoRAs before a prompt.

    Differs: the reference joins without a space; ours adds one where a trigger ends without.

    Args:
        prompt: What the user wrote.
        triggers: In the order they shall stand; those that the prompt already holds are left out.

    Returns:
        The prompt that is encoded.
    """
    missing = [
        trigger
        for trigger in triggers
        if trigger.strip() and not re.search(rf"(?<!\w){re.escape(trigger.strip())}(?!\w)", prompt)
    ]
    spaced = (each if each[-1].isspace() else f"{each} " for each in dict.fromkeys(missing))
    return "".join([*spaced, prompt]) if prompt else "".join(spaced).rstrip()
