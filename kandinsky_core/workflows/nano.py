"""The bundled nano model in place of files, so that a converted workflow runs anywhere."""

from __future__ import annotations

from typing import Any

from .graph import Graph, Link, Node
from .tables import PREFIX

NANO, NANO_EDIT = "nano (bundled)", "nano edit (bundled)"
"""What our loaders call them in their lists."""
SIDE, FRAMES = 128, 17
EXAMPLE = "example.png"
"""The picture that comes with ComfyUI."""

_VALUES: dict[str, dict[str, Any]] = {
    "K5_LoadModel": {"model_name": NANO, "weight_dtype": "default"},
    "K5_LoadTextEncoders": {"qwen_name": NANO, "clip_name": "(none)"},
    "K5_LoadVAE": {"vae_name": NANO},
    "K5_LoadLora": {"strength": 0},  # it belongs to a larger model
    "K5_EmptyLatent": {"width": SIDE, "height": SIDE, "batch_size": 1},
    "K5_ImageToVideo": {"width": SIDE, "height": SIDE, "batch_size": 1},
    "K5_Sampler": {"steps": 0, "cfg": 0, "shift": 0},  # the checkpoint's own
    "LoadImage": {"image": EXAMPLE},
}


def put_nano(graph: Graph) -> list[str]:
    """Set files, sizes and settings to nano's, in place.

    Returns:
        What was set, a sentence a node.
    """
    lines = []
    edits = any(node.type == f"{PREFIX}EditImage" for node in graph.nodes.values())
    for node in graph.nodes.values():
        values = dict(_VALUES.get(node.type, {}))
        if edits and "model_name" in values:
            values["model_name"] = NANO_EDIT
        if "width" in values and node.inputs.get("length") != 1:
            values["length"] = FRAMES
        values = {name: value for name, value in values.items() if not _fitted(graph, node, name)}
        if values:
            node.inputs |= values
            if node.made and "properties" in node.raw:
                node.raw = {**node.raw, "properties": {}}  # it names files to fetch
            told = ", ".join(f"{name} {value}" for name, value in values.items())
            lines.append(f"For nano, {node.label} has {told}.")
    return lines


def _fitted(graph: Graph, node: Node, name: str) -> bool:
    """Return whether an input follows the model by itself."""
    value = node.inputs.get(name)
    return isinstance(value, Link) and graph.nodes[value.node].type == f"{PREFIX}FitImage"
