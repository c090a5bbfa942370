"""What in a workflow belongs to Kandinsky 5, and what each part is for."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from .graph import Graph, Json, Link, Node
from .tables import (
    AFTER_SAMPLING,
    CLIP_TYPES,
    DECODERS,
    IMAGE_CLIP,
    MODEL_LOADERS,
    ONLY_KANDINSKY,
    SAMPLERS,
)
from .ui_format import widget_values

_NAME = re.compile(r"kandinsky[-_. ]?5", re.IGNORECASE)
_STOP = (*SAMPLERS, *DECODERS)


def is_kandinsky(node_type: str, values: Json) -> bool:
    """Return whether a node is of this family wherever it stands, by its type and its widget
    values."""
    if node_type in ONLY_KANDINSKY:
        return True
    if node_type == "DualCLIPLoader":
        return values.get("type") in CLIP_TYPES
    return node_type == "UNETLoader" and bool(_NAME.search(str(values.get("unet_name", ""))))


def is_kandinsky_raw(raw: Json) -> bool:
    """Return the same of a node as the UI format has it."""
    return is_kandinsky(raw["type"], widget_values(raw))


@dataclass(frozen=True)
class Chain:
    """One sampler and what feeds it."""

    sampler: str
    task: str
    """t2v, i2v, t2i or i2i."""
    loader: str | None
    """Id of the node that loads the model."""
    ancestors: tuple[str, ...]
    """Ids of what feeds the sampler, up to other samplers and decoders; nearest first."""


class Scope:
    """Chains of a workflow and the nodes to convert."""

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        found = {node.id for node in graph.nodes.values() if is_kandinsky(node.type, node.inputs)}
        self.chains: list[Chain] = []
        for node in graph.nodes.values():
            if node.type in SAMPLERS:
                ancestors = graph.ancestors(node.id, _STOP)
                if found & {node.id, *ancestors}:
                    self.chains.append(self._chain(node, ancestors))
        self.members = set(found)
        for chain in self.chains:
            self.members |= {chain.sampler, *chain.ancestors}
        for node in graph.nodes.values():
            if node.type in AFTER_SAMPLING and self.chain_above(node.id):
                self.members.add(node.id)
                vae = node.inputs.get("vae")
                if isinstance(vae, Link):
                    self.members |= {vae.node, *graph.ancestors(vae.node, _STOP)}

    def has_kandinsky(self) -> bool:
        """Return whether there is anything to convert."""
        return bool(self.members)

    def chain_above(self, node_id: str) -> Chain | None:
        """Return the chain whose result a node gets, through nodes that are no sampler or
        decoder."""
        by_sampler = {chain.sampler: chain for chain in self.chains}
        above = (node_id, *self.graph.ancestors(node_id, _STOP))
        for each in above:
            for _, link in self.graph.nodes[each].links():
                if link.node in by_sampler:
                    return by_sampler[link.node]
        return None

    def chains_below(self, node_id: str) -> list[Chain]:
        """Return the chains that a node feeds."""
        return [chain for chain in self.chains if node_id in chain.ancestors]

    def task(self, node_id: str) -> str:
        """Return what a text encoder or its loader is used for."""
        below = self.chains_below(node_id)
        if below:
            return below[0].task
        node = self.graph.nodes[node_id]
        return "t2i" if node.inputs.get("type") == IMAGE_CLIP else "t2v"

    def consumers(self, node_id: str, slot: int) -> list[Node]:
        """Return the nodes that an output feeds."""
        link = Link(node_id, slot)
        return [
            node for node in self.graph.nodes.values() if link in [each for _, each in node.links()]
        ]

    def _chain(self, sampler: Node, ancestors: list[str]) -> Chain:
        from ..checkpoint.info import facts_in_name  # torch comes with it

        nodes = [self.graph.nodes[each] for each in ancestors]
        loader = next((node for node in nodes if node.type in MODEL_LOADERS), None)
        name: Any = loader.inputs.get(MODEL_LOADERS[loader.type]) if loader else None
        stated = facts_in_name(str(name)).get("task")
        pictured = isinstance(sampler.inputs.get("image_latent"), Link) or any(
            node.type == "Kandinsky5ImageToVideo"
            and isinstance(node.inputs.get("start_image"), Link)
            for node in nodes
        )
        clip = {node.inputs.get("type") for node in nodes if node.type == "DualCLIPLoader"}
        if stated in ("t2i", "i2i"):
            task = str(stated)
        elif stated is None and IMAGE_CLIP in clip:
            task = "t2i"
        else:
            task = "i2v" if pictured else "t2v"
        return Chain(sampler.id, task, loader.id if loader else None, tuple(ancestors))
