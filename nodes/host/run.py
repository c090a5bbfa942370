"""What a running node tells ComfyUI, and what ComfyUI tells it."""

from __future__ import annotations

import sys
from typing import Any

import comfy.model_management
import comfy.utils
import node_helpers

RECORD = "kandinsky5"
"""Keyword of a saved file's metadata: node id -> what it settled on, a list in order."""

PROMPT = "k5_prompt"
"""Conditioning key: the text that was encoded, for the record."""


def check_cancelled() -> None:
    """Raise ComfyUI's interrupt exception if the user pressed Cancel."""
    comfy.model_management.throw_exception_if_processing_interrupted()


class Progress:
    """The progress bar on the node that is running; each step is also a place to cancel."""

    def __init__(self, total: int) -> None:
        self._bar = comfy.utils.ProgressBar(total)

    def advance(self, amount: int = 1) -> None:
        """Move the bar.

        Raises:
            InterruptProcessingException: The user pressed Cancel.
        """
        check_cancelled()
        self._bar.update(amount)


def set_conditioning(conditioning: list[Any], values: dict[str, Any]) -> list[Any]:
    """Copy a CONDITIONING with `values` added to each of its entries."""
    return node_helpers.conditioning_set_values(conditioning, values)


def show_text(hidden: Any, text: str) -> None:
    """Show a text on the node that is running.

    Args:
        hidden: The node's `cls.hidden`, which holds its unique_id; None outside of a server.
        text: What to show.
    """
    node_id = getattr(hidden, "unique_id", None)
    # the server has long been imported where there is one
    server = getattr(getattr(sys.modules.get("server"), "PromptServer", None), "instance", None)
    if node_id is not None and hasattr(server, "send_progress_text"):
        server.send_progress_text(text, node_id)


def prompt_of(conditioning: list[Any]) -> str | None:
    """Return the prompt behind a CONDITIONING; None where another node encoded it."""
    texts = [extra[PROMPT] for _, extra in conditioning if PROMPT in extra]
    return " ".join(dict.fromkeys(texts)) if texts else None


def record(hidden: Any, node: str, values: dict[str, Any]) -> None:
    """Put what a node settled on into the metadata of files that this run saves later.

    A file made of results in ComfyUI's cache, whose nodes do not run again, lacks it.

    Args:
        hidden: The node's `cls.hidden`, which holds its extra_pnginfo: what ComfyUI's save nodes
            write beside the workflow, one dictionary for the whole run.
        node: The node's id.
        values: Plain values for JSON; those that are None are left out.
    """
    metadata = getattr(hidden, "extra_pnginfo", None)
    if isinstance(metadata, dict):
        known = {name: value for name, value in values.items() if value is not None}
        metadata.setdefault(RECORD, {}).setdefault(node, []).append(known)
