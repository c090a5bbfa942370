"""What stands in place of a node: the terms that the rules are written in."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from .chains import Chain, Scope
from .graph import Link, Node


@dataclass(eq=False)
class NewNode:
    """A node of ours to be made; its inputs may be links into the old workflow."""

    type: str
    inputs: dict[str, Any]


class Out(NamedTuple):
    """An output of a node to be made."""

    node: NewNode
    slot: int = 0


LOST = object()
"""What an output maps to when nothing of ours gives it."""


@dataclass
class Replacement:
    """What stands in place of one node."""

    nodes: list[NewNode] = field(default_factory=list)
    """The last one takes the old node's id and title."""
    outputs: dict[int, Any] = field(default_factory=dict)
    """Old output -> `Out`, `Link` into the old workflow, or `LOST`."""
    became: str = ""
    """Where it went when it is no node of its own any more."""
    lost: list[str] = field(default_factory=list)
    """What could not be mapped, one sentence each, after the node's name."""


Rule = Callable[[Node, Scope], Replacement | None]
"""None leaves the node as it is."""


def make_one(node_type: str, outputs: int = 1, /, **inputs: Any) -> Replacement:
    """Return one node of ours whose outputs are the old one's; inputs that are None are left
    out."""
    new = NewNode(node_type, {name: value for name, value in inputs.items() if value is not None})
    return Replacement([new], {slot: Out(new, slot) for slot in range(outputs)})


def make_decode(vae: str, latent: str) -> Rule:
    """Return a rule for a decoder whose inputs have these names."""

    def rule(node: Node, scope: Scope) -> Replacement:  # noqa: ARG001
        made = make_one(
            "K5_Decode",
            vae=node.inputs.get(vae),
            latent=node.inputs.get(latent),
            memory_budget_gb=0,
        )
        if "tile_size" in node.inputs:
            made.lost.append("its tile sizes are left out, K5_Decode chooses tiles by free memory")
        return made

    return rule


def loaded_model(chain: Chain, scope: Scope) -> Any:
    """Return the model as it was loaded, which tells sizes and latent space."""
    if chain.loader is not None:
        return Link(chain.loader, 0)
    return scope.graph.nodes[chain.sampler].inputs.get("model")
