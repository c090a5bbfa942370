"""Subgraphs of the UI format: those that hold Kandinsky 5 nodes are laid out in the open.

A subgraph node's type is the id of its definition. Inside, links from node -10 come from the
node's inputs and links to node -20 go to its outputs.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from graphlib import CycleError, TopologicalSorter
from typing import Any, NamedTuple

from ..errors import WorkflowError
from .graph import BYPASSED, MUTED, Json
from .ui_format import Wire, box, check_part, position, read_wire, widget_names

INPUTS, OUTPUTS = -10, -20
MARGIN = 60  # pixels
MOST_NODES, MOST_PARTS = 2_000, 20_000
"""Nodes of a workflow with its subgraphs laid out, and links, groups and sockets beside them: some
ten times what large workflows have. Each subgraph may stand in others many times, so that a small
file could ask for any number."""

Wanted = Callable[[Json], bool]


def expand_subgraphs(document: Json, wanted: Wanted) -> tuple[Json, list[str]]:
    """Put the nodes of subgraphs in place of the nodes that stand for them.

    Args:
        document: A workflow in UI format.
        wanted: Whether a node is of interest; subgraphs without one stay as they are.

    Returns:
        The workflow, and the names of the subgraphs that were laid out.

    Raises:
        WorkflowError: A definition contains itself or is not as the format has it, or too many
            nodes would be laid out.
    """
    definitions = _definitions(document)
    useful = _useful(document, definitions, wanted)
    document = copy.deepcopy(document)
    document["links"] = [read_wire(raw) for raw in document["links"]]
    names = []
    while instance := next((node for node in document["nodes"] if node["type"] in useful), None):
        definition = definitions[instance["type"]]
        names.append(f"{definition.get('name', 'subgraph')} {instance['id']}")
        _Expansion(document, instance, copy.deepcopy(definition)).run()
    document["links"] = [list(wire) for wire in document["links"]]
    if names:
        _drop_unused(document, definitions)
    return document, names


def _definitions(document: Json) -> dict[str, Json]:
    found = {}
    for each in (document.get("definitions") or {}).get("subgraphs") or []:
        for key in ("nodes", "links", "inputs"):
            if not isinstance(each.get(key), list):
                raise WorkflowError(
                    f"The subgraph {each.get('name', '')!r} has no list of {key}; "
                    "save the workflow again."
                )
        check_part(each, (INPUTS, OUTPUTS))
        found[each["id"]] = each
    return found


class _Size(NamedTuple):
    """How much a node becomes when it is laid out."""

    nodes: int
    parts: int
    """Links, groups, and what is shown on the outside."""


def _useful(document: Json, definitions: dict[str, Json], wanted: Wanted) -> set[str]:
    """Return the ids of the definitions that hold a node of interest, at any depth; each is visited
    once."""
    inside = {
        each: {node["type"] for node in definition["nodes"]} & definitions.keys()
        for each, definition in definitions.items()
    }
    try:
        inner_first = list(TopologicalSorter(inside).static_order())
    except CycleError as error:
        each = error.args[1][0]
        name = definitions[each].get("name", each)
        raise WorkflowError(
            f"The subgraph {name!r} contains itself; take it out of itself."
        ) from error
    sizes: dict[str, _Size] = {}
    for each in inner_first:
        nodes = definitions[each]["nodes"]
        if inside[each] & sizes.keys() or any(wanted(node) for node in nodes):
            sizes[each] = _size_of(definitions[each], sizes)
    laid_out = _size_of(document, sizes)
    for what, count, most in (
        ("nodes", laid_out.nodes, MOST_NODES),
        ("links and groups", laid_out.parts, MOST_PARTS),
    ):
        if count > most:
            raise WorkflowError(
                f"The workflow has more than {most} {what}, those inside its subgraphs counted "
                "each time they stand in it: convert its parts one by one."
            )
    return set(sizes)


def _size_of(part: Json, sizes: dict[str, _Size]) -> _Size:
    """Return the size of a workflow or definition; anything above the limits is as good as any
    more."""
    each = [sizes.get(node["type"], _Size(1, 0)) for node in part["nodes"]]
    own = sum(len(part.get(name) or []) for name in ("links", "groups", "inputs", "outputs"))
    own += sum(len(_shown(node)) for node in part["nodes"])
    return _Size(
        min(sum(size.nodes for size in each), MOST_NODES + 1),
        min(sum(size.parts for size in each) + own, MOST_PARTS + 1),
    )


def _drop_unused(document: Json, definitions: dict[str, Json]) -> None:
    waiting = [node["type"] for node in document["nodes"] if node["type"] in definitions]
    used: dict[str, Json] = {}
    while waiting:
        each = waiting.pop()
        if each not in used:
            used[each] = definitions[each]
            waiting += [n["type"] for n in definitions[each]["nodes"] if n["type"] in definitions]
    document["definitions"] = {**document["definitions"], "subgraphs": list(used.values())}
    if not used:
        del document["definitions"]


class _Expansion:
    """One subgraph node replaced by what it stands for."""

    def __init__(self, document: Json, instance: Json, definition: Json) -> None:
        self._document, self._instance, self._definition = document, instance, definition
        self._inner = [read_wire(raw) for raw in definition["links"]]
        self._last_link = max((wire.id for wire in document["links"]), default=0)
        self._feeds = self._links_from_outside()
        document["nodes"].remove(instance)
        taken = {node["id"] for node in document["nodes"]}
        self._ids: dict[int, int] = {}
        for node in definition["nodes"]:
            new = node["id"] if node["id"] not in taken else max(taken) + 1
            taken.add(new)
            self._ids[node["id"]] = new

    def run(self) -> None:
        """Rewrite the document in place."""
        document, instance, inside = self._document, self._instance, self._definition["nodes"]
        self._set_promoted_values({node["id"]: node for node in inside})
        drains = [wire for wire in document["links"] if wire.source == instance["id"]]
        document["links"] = [
            wire for wire in document["links"] if instance["id"] not in (wire.source, wire.target)
        ]
        for node in inside:
            node["id"] = self._ids[node["id"]]
            for each in node.get("inputs") or []:
                each["link"] = None
            if instance.get("mode") in (MUTED, BYPASSED):
                node["mode"] = instance["mode"]
        self._place(inside)
        document["nodes"] += inside
        nodes = {node["id"]: node for node in document["nodes"]}
        for drain in drains:
            nodes[drain.target]["inputs"][drain.target_slot]["link"] = None
        for wire in self._inner:
            source = self._source(wire)
            if source is None:
                continue
            if wire.target != OUTPUTS:
                self._connect(source, nodes[self._ids[wire.target]], wire.target_slot, wire.type)
                continue
            for drain in drains:
                if drain.source_slot == wire.target_slot:
                    self._connect(source, nodes[drain.target], drain.target_slot, wire.type)

    def _links_from_outside(self) -> dict[int, tuple[int, int]]:
        """Return the number of a definition's input -> the node and output that feed it."""
        wires = {wire.id: wire for wire in self._document["links"]}
        numbers = {each["name"]: i for i, each in enumerate(self._definition["inputs"])}
        return {
            numbers[each["name"]]: (wire.source, wire.source_slot)
            for each in self._instance.get("inputs") or []
            if each["name"] in numbers and (wire := wires.get(each.get("link")))
        }

    def _source(self, wire: Wire) -> tuple[int, int] | None:
        """Return where an inner link comes from, seen from outside; None where nothing is
        connected."""
        if wire.source == INPUTS:
            return self._feeds.get(wire.source_slot)
        return self._ids[wire.source], wire.source_slot

    def _connect(self, source: tuple[int, int], target: Json, slot: int, kind: str) -> None:
        self._last_link += 1
        self._document["links"].append(Wire(self._last_link, *source, target["id"], slot, kind))
        target["inputs"][slot]["link"] = self._last_link

    def _set_promoted_values(self, nodes: dict[int, Json]) -> None:
        """Set the values that the subgraph's own widgets hold; older pages keep them inside
        only."""
        shown = _shown(self._instance)
        values = self._instance.get("widgets_values") or []
        if len(values) != len(shown):
            return
        for (owner, name), value in zip(shown, values, strict=True):
            for node_id, widget in self._holders(int(owner), name, nodes):
                node = nodes.get(node_id, {})
                names = widget_names(node.get("type", ""))
                saved: Any = node.get("widgets_values")
                if isinstance(saved, list) and widget in names[: len(saved)]:
                    saved[names.index(widget)] = value

    def _holders(self, owner: int, name: str, nodes: dict[int, Json]) -> list[tuple[int, str]]:
        """Return which inner widgets a shown one stands for; owner -1 is an input of the
        subgraph."""
        if owner != -1:
            return [(owner, name)]
        numbers = [i for i, each in enumerate(self._definition["inputs"]) if each["name"] == name]
        return [
            (wire.target, nodes[wire.target]["inputs"][wire.target_slot]["name"])
            for wire in self._inner
            if wire.source == INPUTS and wire.source_slot in numbers and wire.target in nodes
        ]

    def _place(self, inside: list[Json]) -> None:
        """Put the nodes where the subgraph stood and make room for them."""
        if not inside:
            return
        boxes = [box(node) for node in inside]
        left, top = min(each[0] for each in boxes), min(each[1] for each in boxes)
        width = max(each[2] for each in boxes) - left + MARGIN
        height = max(each[3] for each in boxes) - top + MARGIN
        old = box(self._instance)
        wider = max(0.0, width - (old[2] - old[0]))
        higher = max(0.0, height - (old[3] - old[1]))
        for node in self._document["nodes"]:
            _move(node, *_room(box(node), old, wider, higher))
        for group in self._document.get("groups") or []:
            _move_group(group, *_room(tuple(group["bounding"][:2]), old, wider, higher))
        right, down = old[0] - left, old[1] - top
        for node in inside:
            _move(node, right, down)
        groups = self._definition.get("groups") or []
        for group in groups:
            _move_group(group, right, down)
        self._document["groups"] = [*(self._document.get("groups") or []), *groups]


def _shown(node: Json) -> list[Any]:
    """Return the widgets of inner nodes that a subgraph node shows, each the inner node's id and a
    name."""
    properties = node.get("properties")
    return (properties.get("proxyWidgets") or []) if isinstance(properties, dict) else []


def _room(
    corner: tuple[float, ...], old: tuple[float, ...], wider: float, higher: float
) -> tuple[float, float]:
    """Return how far something right of or below the subgraph moves."""
    if corner[0] >= old[2]:
        return wider, 0.0
    return 0.0, higher if corner[1] >= old[3] else 0.0


def _move(node: Json, right: float, down: float) -> None:
    x, y = position(node)
    node["pos"] = [x + right, y + down]


def _move_group(group: Json, right: float, down: float) -> None:
    x, y, *size = group["bounding"]
    group["bounding"] = [x + right, y + down, *size]
