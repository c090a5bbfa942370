"""The API format: node id -> {"class_type", "inputs"}, a link being [id, slot]."""

from __future__ import annotations

from typing import Any

from ..errors import WorkflowError
from .graph import Graph, Json, Link, Node
from .tables import CONTROL, OURS


def read_api(document: Json) -> Graph:
    """Read a workflow.

    Raises:
        WorkflowError: A node is not as the format has it.
    """
    nodes = {}
    for node_id, raw in document.items():
        if not isinstance(raw.get("inputs"), dict):
            raise WorkflowError(
                f"Node {node_id} ({raw['class_type']}): expected its inputs as an object, found "
                f"{type(raw.get('inputs')).__name__}; export the workflow again."
            )
        inputs = {name: _read_value(value) for name, value in raw["inputs"].items()}
        nodes[node_id] = Node(node_id, raw["class_type"], inputs, raw)
    return Graph("api", nodes, {})


def write_api(graph: Graph) -> Json:
    """Return the workflow as the API format has it."""
    return {node.id: _write_node(node) for node in graph.nodes.values()}


def _write_node(node: Node) -> Json:
    inputs = dict(node.inputs)
    if node.made:
        spec = OURS[node.type]
        defaults = {each.name: each.default for each in spec.inputs if each.is_widget}
        inputs = {**defaults, **inputs}
        inputs.pop(CONTROL, None)
    return {
        **node.raw,
        "inputs": {name: _write_value(value) for name, value in inputs.items()},
        "class_type": node.type,
    }


def _read_value(value: Any) -> Any:
    if isinstance(value, list) and len(value) == 2:
        node_id, slot = value
        if isinstance(node_id, str) and isinstance(slot, int) and not isinstance(slot, bool):
            return Link(node_id, slot)
    return value


def _write_value(value: Any) -> Any:
    return list(value) if isinstance(value, Link) else value
