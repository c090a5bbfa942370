"""Foreign Kandinsky 5 nodes onto ours, with a report in which nothing is missing."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from ..errors import WorkflowError
from ..files import check_writable, write_text
from .chains import Scope, is_kandinsky_raw
from .formats import load_json, read_workflow, write_workflow
from .graph import Graph, Json, Link, Node
from .nano import put_nano
from .native import NATIVE
from .official import OFFICIAL
from .replacement import LOST, NewNode, Out, Replacement
from .tables import PREFIX

RULES = {**OFFICIAL, **NATIVE}


@dataclass
class Report:
    """What happened to each node, a sentence each."""

    mapped: list[str] = field(default_factory=list)
    """Nodes that became ours."""
    kept: list[str] = field(default_factory=list)
    """Nodes that stay as they are."""
    lost: list[str] = field(default_factory=list)
    """What could not be mapped."""

    def to_dict(self) -> dict[str, list[str]]:
        """Return the same as JSON takes it."""
        return asdict(self)

    def describe(self) -> str:
        """Return the report as text."""
        titles = {"mapped": "Mapped", "kept": "Kept", "lost": "Could not be mapped"}
        parts = []
        for name, lines in self.to_dict().items():
            parts.append(f"{titles[name]} ({len(lines)}):")
            parts += [f"  {line}" for line in lines]
        return "\n".join(parts)


class Conversion(NamedTuple):
    """A converted workflow."""

    workflow: Json
    """In the format it came in."""
    report: Report


def convert_workflow(document: Any, *, nano: bool = False) -> Conversion:
    """Map the Kandinsky 5 nodes of a ComfyUI workflow onto ours.

    Known are the official pack's nodes and ComfyUI's own. All others stay, and links between both
    are kept. Subgraphs that hold Kandinsky 5 nodes are laid out in the open.

    Args:
        document: A workflow as ComfyUI saves it (nodes and links) or exports it for the API.
        nano: Put the bundled nano model, its sizes and settings in place of the files, so that the
            result runs without a download.

    Returns:
        The workflow in the same format, and what happened to each node.

    Raises:
        WorkflowError: It is no workflow, does not fit together, or holds nothing to convert.
    """
    graph, laid_out = read_workflow(document, is_kandinsky_raw)
    scope = Scope(graph)
    if not scope.has_kandinsky():
        ours = any(node.type.startswith(PREFIX) for node in graph.nodes.values())
        raise WorkflowError(
            "The workflow has this pack's Kandinsky 5 nodes already: there is nothing to convert."
            if ours
            else "The workflow has no Kandinsky 5 node: expected the official pack's nodes or "
            "ComfyUI's own with a Kandinsky 5 file; open one that has."
        )
    report = Report([f"Subgraph {name} was laid out in the open." for name in laid_out])
    result = _Builder(scope, report).build()
    if nano:
        report.mapped += put_nano(result)
    report.kept += _kept_beside_nodes(result)
    return Conversion(write_workflow(result), report)


def convert_file(source: Path, target: Path, *, nano: bool = False) -> Report:
    """Convert a file and write the result.

    Args:
        source: A workflow's .json.
        target: Where the converted one goes; its folder must exist.
        nano: As for `convert_workflow`.

    Returns:
        What happened to each node.

    Raises:
        WorkflowError: The workflow cannot be read or converted.
        OutputError: The result cannot be written.
    """
    check_writable(target)
    workflow, report = convert_workflow(load_json(source), nano=nano)
    write_text(target, json.dumps(workflow, indent=2, ensure_ascii=False) + "\n")
    return report


class _Builder:
    """The new workflow from the replacements that the rules give."""

    def __init__(self, scope: Scope, report: Report) -> None:
        self._graph, self._report = scope.graph, report
        self._replacements: dict[str, Replacement] = {}
        for node in scope.graph.nodes.values():
            rule = RULES.get(node.type) if node.id in scope.members else None
            if rule and (replacement := rule(node, scope)):
                self._replacements[node.id] = replacement
        self._outputs = {
            Link(node_id, slot): value
            for node_id, replacement in self._replacements.items()
            for slot, value in replacement.outputs.items()
        }
        self._ids = dict(self._name_new_nodes())

    def build(self) -> Graph:
        """Put kept and new nodes together, and say what became of each."""
        nodes: list[Node] = []
        for old in self._graph.nodes.values():
            replacement = self._replacements.get(old.id)
            if replacement is None:
                inputs = self._resolve_inputs(old.label, old.inputs)
                nodes.append(Node(old.id, old.type, inputs, old.raw))
                self._report.kept.append(f"{old.label} stays as it is.")
                continue
            made = [self._make(new, old) for new in reversed(replacement.nodes)]
            nodes += made
            became = ", ".join(each.label for each in made) or replacement.became
            self._report.mapped.append(f"{old.label} became {became}.")
            self._report.lost += [f"{old.label}: {each}." for each in replacement.lost]
        return Graph(self._graph.format, {node.id: node for node in nodes}, self._graph.document)

    def _name_new_nodes(self) -> Iterator[tuple[NewNode, str]]:
        numbers = [int(each) for each in self._graph.nodes if each.isdecimal()]
        following = max(numbers, default=0) + 1
        for node_id, replacement in self._replacements.items():
            for new in replacement.nodes[:-1]:
                yield new, str(following)
                following += 1
            for new in replacement.nodes[-1:]:
                yield new, node_id

    def _make(self, new: NewNode, old: Node) -> Node:
        node_id = self._ids[new]
        inputs = self._resolve_inputs(f"{new.type} {node_id}", new.inputs)
        raw = old.raw
        if node_id != old.id:  # beside the one that takes its place
            raw = {key: raw[key] for key in ("pos", "mode") if key in raw}
        return Node(node_id, new.type, inputs, raw, made=True)

    def _resolve_inputs(self, label: str, inputs: Json) -> Json:
        resolved = {}
        for name, value in inputs.items():
            new = self._resolve(value)
            if new is LOST:
                source = self._graph.nodes[value.node].label
                self._report.lost.append(
                    f"{label}: its input {name!r} came from {source}, which gives nothing like it "
                    "any more; connect it by hand."
                )
            elif new is not None:
                resolved[name] = new
        return resolved

    def _resolve(self, value: Any) -> Any:
        while isinstance(value, Link) and value.node in self._replacements:
            value = self._outputs.get(value, LOST)
        return Link(self._ids[value.node], value.slot) if isinstance(value, Out) else value


def _kept_beside_nodes(graph: Graph) -> list[str]:
    document = graph.document
    counts = {
        "group": len(document.get("groups") or []),
        "subgraph": len((document.get("definitions") or {}).get("subgraphs") or []),
    }
    lines = [f"{count} {name}(s) stay as they are." for name, count in counts.items() if count]
    if {"linkExtensions", "reroutes"} & set(document.get("extra") or {}):
        lines.append("Links are drawn without their bends; they connect what they did.")
    return lines
