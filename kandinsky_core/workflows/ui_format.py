"""The UI format: nodes with positions and widget values, and a list of links."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from ..errors import WorkflowError
from .graph import Graph, Json, Link, Node
from .tables import OURS, WIDGETS

WIDTH, TITLE, ROW, TEXT_AREA = 320, 30, 26, 110  # pixels of a node that was made
GAP = 40
ALWAYS = 0


class Wire(NamedTuple):
    """An entry of `links`."""

    id: int
    source: int
    source_slot: int
    target: int
    target_slot: int
    type: str


def read_wire(raw: Any) -> Wire:
    """Return a link as newer (object) or older (list) files have it.

    Raises:
        WorkflowError: It is neither.
    """
    try:
        if isinstance(raw, dict):
            keys = ("id", "origin_id", "origin_slot", "target_id", "target_slot", "type")
            return Wire(*(raw[key] for key in keys))
        return Wire(*raw)
    except (KeyError, TypeError) as error:
        raise WorkflowError(
            f"links: expected [id, node, output, node, input, type], found {str(raw)[:80]}; "
            "save the workflow again."
        ) from error


def widget_names(node_type: str) -> list[str]:
    """Return the names of the saved widget values of a type we know, in order."""
    return OURS[node_type].widgets() if node_type in OURS else list(WIDGETS.get(node_type, ()))


def widget_values(raw: Json) -> Json:
    """Name -> saved value, of the types we know."""
    values = raw.get("widgets_values") or []
    known = widget_names(raw["type"])
    if isinstance(values, dict):
        return {name: values[name] for name in known if name in values}
    return dict(zip(known, values, strict=False))


def check_part(part: Json, borders: tuple[int, ...] = ()) -> None:
    """Refuse a workflow or subgraph whose nodes and links do not fit together.

    Args:
        part: What holds `nodes` and `links`.
        borders: Ids that links may end at beside those of nodes.

    Raises:
        WorkflowError: Something is missing; the sentence says what.
    """
    slots: dict[tuple[int, str], int] = {}
    for node in part["nodes"]:
        if not isinstance(node, dict) or not isinstance(node.get("id"), int):
            raise WorkflowError(
                f"nodes: expected objects with a whole number as id, found {str(node)[:60]}; "
                "save the workflow again."
            )
        if not isinstance(node.get("type"), str):
            raise WorkflowError(f"Node {node['id']} has no type; save the workflow again.")
        for side in ("inputs", "outputs"):
            entries = node.get(side) or []
            if not all(
                isinstance(each, dict) and {"name", "type"} <= set(each) for each in entries
            ):
                raise WorkflowError(
                    f"{node['type']} {node['id']}: expected its {side} as objects with name and "
                    "type; save the workflow again."
                )
            slots[node["id"], side] = len(entries)
    for wire in map(read_wire, part["links"]):
        ends = (
            (wire.source, "outputs", wire.source_slot),
            (wire.target, "inputs", wire.target_slot),
        )
        for node_id, side, slot in ends:
            if node_id not in borders and slot not in range(slots.get((node_id, side), 0)):
                what = f"{side[:-1]} {slot} of node {node_id}"
                raise WorkflowError(
                    f"Link {wire.id} ({wire.type}) ends at {what}, which the workflow does not "
                    "have; open it in ComfyUI, repair the link, save again."
                )


def read_ui(document: Json) -> Graph:
    """Read a workflow that `check_part` has passed.

    Raises:
        WorkflowError: An input names a link that does not exist.
    """
    wires = {wire.id: wire for wire in map(read_wire, document["links"])}
    nodes = [_read_node(raw, wires) for raw in document["nodes"]]
    return Graph("ui", {node.id: node for node in nodes}, document)


def _read_node(raw: Json, wires: Mapping[int, Wire]) -> Node:
    inputs = widget_values(raw)
    for each in raw.get("inputs") or []:
        if each.get("link") is None:
            continue
        wire = wires.get(each["link"])
        if wire is None:
            raise WorkflowError(
                f"{raw['type']} {raw['id']}: its input {each['name']!r} names link "
                f"{each['link']}, which the workflow does not have; repair it in ComfyUI."
            )
        inputs[each["name"]] = Link(str(wire.source), wire.source_slot)
    return Node(str(raw["id"]), raw["type"], inputs, raw)


def write_ui(graph: Graph) -> Json:
    """Return the workflow as the UI format has it, with links numbered anew."""
    order = {node_id: rank for rank, node_id in enumerate(graph.order())}
    nodes = [_write_node(node, order[node.id]) for node in graph.nodes.values()]
    written = {str(node["id"]): node for node in nodes}
    links = []
    for node in graph.nodes.values():
        target = written[node.id]
        slots = {each["name"]: slot for slot, each in enumerate(target["inputs"])}
        for name, link in node.links():
            source, slot = written[link.node], slots[name]
            output = source["outputs"][link.slot]
            entry = target["inputs"][slot]
            links.append(
                [
                    *(len(links) + 1, source["id"], link.slot, target["id"], slot),
                    output["type"] if output["type"] != "*" else entry["type"],
                ]
            )
            entry["link"] = len(links)
            output["links"] = [*(output["links"] or []), len(links)]
    _settle(nodes, {int(each.id) for each in graph.nodes.values() if each.made})
    extra = {
        key: value
        for key, value in (graph.document.get("extra") or {}).items()
        if key not in ("linkExtensions", "reroutes")  # bends of links that are numbered anew
    }
    return {
        **graph.document,
        "last_node_id": max((node["id"] for node in nodes), default=0),
        "last_link_id": len(links),
        "nodes": nodes,
        "links": links,
        "extra": extra,
    }


def _write_node(node: Node, order: int) -> Json:
    if node.made:
        return _write_ours(node, order)
    raw = node.raw
    values = raw.get("widgets_values")
    if isinstance(values, list):
        names = widget_names(node.type)
        named = dict(zip(range(len(values)), names, strict=False))
        values = [
            value if isinstance(new := node.inputs.get(named.get(place, ""), value), Link) else new
            for place, value in enumerate(values)
        ]
    return {
        **raw,
        "order": order,
        "inputs": [{**each, "link": None} for each in raw.get("inputs") or []],
        "outputs": [{**each, "links": None} for each in raw.get("outputs") or []],
        **({} if values is None else {"widgets_values": values}),
    }


def _write_ours(node: Node, order: int) -> Json:
    spec, raw = OURS[node.type], node.raw
    values = {each.name: each.default for each in spec.inputs}
    values |= {name: value for name, value in node.inputs.items() if not isinstance(value, Link)}
    sockets: list[Json] = [
        {"name": each.name, "type": each.type, "link": None}
        for each in spec.inputs
        if not each.is_widget
    ]
    widgets: list[Json] = [
        {"name": each.name, "type": each.type, "widget": {"name": each.name}, "link": None}
        for each in spec.inputs
        if each.is_widget
    ]
    names = spec.widgets()
    height = TITLE + ROW * (max(len(sockets), len(spec.outputs)) + len(names))
    height += TEXT_AREA * ("text" in names)
    files = raw.get("properties", {}).get("models")
    return {
        "id": int(node.id),
        "type": node.type,
        "pos": list(position(raw)),
        "size": [max(WIDTH, _size(raw)[0]), height],
        "flags": {},
        "order": order,
        "mode": raw.get("mode", ALWAYS),
        "inputs": sockets + widgets,
        "outputs": [{"name": name, "type": kind, "links": None} for name, kind in spec.outputs],
        "properties": {
            "cnr_id": "kandinsky-core",
            "Node name for S&R": node.type,
            **({"models": files} if files else {}),
        },
        "widgets_values": [values.get(name, "fixed") for name in names],
        **{key: raw[key] for key in ("title", "color", "bgcolor") if raw.get(key)},
    }


def position(raw: Json) -> tuple[float, float]:
    """Return upper left corner of a node, which old files hold as an object."""
    return _pair(raw.get("pos"), (0, 0))


def _size(raw: Json) -> tuple[float, float]:
    return _pair(raw.get("size"), (WIDTH, TITLE))


def _pair(value: Any, default: tuple[float, float]) -> tuple[float, float]:
    if isinstance(value, dict):
        return value.get("0", default[0]), value.get("1", default[1])
    return (value[0], value[1]) if isinstance(value, list) and len(value) > 1 else default


def box(raw: Json) -> tuple[float, float, float, float]:
    """Return left, top, right and bottom of a node with its title."""
    (x, y), (width, height) = position(raw), _size(raw)
    return x, y - TITLE, x + width, y + height


def _settle(nodes: list[Json], movable: set[int]) -> None:
    """Move each made node down until it covers no other."""
    placed = [node for node in nodes if node["id"] not in movable]
    for node in (node for node in nodes if node["id"] in movable):
        while hit := next((each for each in placed if _overlap(box(node), box(each))), None):
            node["pos"][1] = box(hit)[3] + TITLE + GAP / 2
        placed.append(node)


def _overlap(a: tuple[float, ...], b: tuple[float, ...]) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]
