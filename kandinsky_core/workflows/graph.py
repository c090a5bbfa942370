"""A workflow as nodes whose inputs are values or links, whichever format it came in."""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from graphlib import CycleError, TopologicalSorter
from typing import Any, Literal, NamedTuple

from ..errors import WorkflowError

Json = dict[str, Any]
MUTED, BYPASSED = 2, 4
"""Modes of a node in the UI format: its branch does not run, or it passes its inputs on."""


class Link(NamedTuple):
    """The output of another node."""

    node: str
    slot: int


@dataclass
class Node:
    """One node; ids are strings as in the API format."""

    id: str
    type: str
    inputs: dict[str, Any]
    """Input name -> `Link` or value; values of types unknown to us stay in `raw` (UI format)."""
    raw: Json = field(default_factory=dict)
    """The node as the file has it; for one that was made, what gives its place and title."""
    made: bool = False
    """Whether the converter made it: one of ours, in full."""

    @property
    def label(self) -> str:
        """How messages name it."""
        return f"{self.type} {self.id}"

    def links(self) -> Iterator[tuple[str, Link]]:
        """Return the inputs that another node feeds."""
        return ((name, value) for name, value in self.inputs.items() if isinstance(value, Link))


@dataclass
class Graph:
    """A workflow."""

    format: Literal["ui", "api"]
    nodes: dict[str, Node]
    document: Json
    """What the file holds beside nodes and links (UI format)."""

    def order(self) -> list[str]:
        """Return ids, each after those that feed it.

        Raises:
            WorkflowError: A link comes from no node, or nodes feed each other in a circle.
        """
        feeds: dict[str, list[str]] = {}
        for node in self.nodes.values():
            feeds[node.id] = [link.node for _, link in node.links()]
            for name, link in node.links():
                if link.node not in self.nodes:
                    raise WorkflowError(
                        f"{node.label}: its input {name!r} comes from node {link.node}, which the "
                        "workflow does not have; open it in ComfyUI, repair the link, save again."
                    )
        try:
            return list(TopologicalSorter(feeds).static_order())
        except CycleError as error:
            circle = " -> ".join(self.nodes[each].label for each in reversed(error.args[1]))
            raise WorkflowError(
                f"The links run in a circle ({circle}), and no order of running exists; "
                "take one of these links out."
            ) from error

    def ancestors(self, start: str, stop: Collection[str]) -> list[str]:
        """Return the ids of what feeds a node, nearest first.

        Args:
            start: Id of the node; not part of the result.
            stop: Node types that are not entered.
        """
        found: dict[str, None] = {}
        waiting = deque(link.node for _, link in self.nodes[start].links())
        while waiting:
            each = waiting.popleft()
            if each not in found and self.nodes[each].type not in stop:
                found[each] = None
                waiting.extend(link.node for _, link in self.nodes[each].links())
        return list(found)
