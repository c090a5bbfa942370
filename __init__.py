"""Entry point of the ComfyUI pack: the nodes are imported when ComfyUI asks for them."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from comfy_api.latest import ComfyExtension

WEB_DIRECTORY = "./web"


async def comfy_entrypoint() -> ComfyExtension:
    """Return the extension that lists the nodes (called once by ComfyUI's loader)."""
    from .nodes import Kandinsky5Extension

    return Kandinsky5Extension()
