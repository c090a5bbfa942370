"""Bring LoRAs to a network: whose layers they name, whether they fit, and adding them in.

Letters: O outputs, I inputs of a linear layer.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import torch
from torch import nn

from ...errors import CheckpointError
from ...family.variants import VARIANTS
from ...models import CrossDiT
from ...weights import PackedWeight
from .names import spellings
from .read import Lora, LoraPair

Shape = tuple[int, ...]
_NAMED = 3  # of those left out


@dataclass(frozen=True)
class LoraMatch:
    """A LoRA whose layers were found in a network."""

    lora: Lora
    pairs: Mapping[str, LoraPair] = field(repr=False)
    """Layer, as the network names it -> what is added to it."""
    left_out: tuple[str, ...]
    """Layers, and tensors that are no part of a pair, that the network has no place for."""

    @property
    def note(self) -> str:
        """One sentence on what was left out; empty if nothing was."""
        if not self.left_out:
            return ""
        total = len(self.pairs) + len(self.left_out)
        named = ", ".join(self.left_out[:_NAMED]) + ", ..." * (len(self.left_out) > _NAMED)
        return (
            f"{self.lora.path.name}: {len(self.left_out)} of {total} entries have no place in "
            f"this model and were left out: {named}"
        )


def layer_shapes(network: nn.Module) -> dict[str, Shape]:
    """Return linear layers of a network by name, each with the shape (O, I) of its weight."""
    layers = dict(network.named_modules())
    shapes = {
        name.removesuffix(".weight"): tuple(weight.shape)
        for name, weight in network.named_parameters()
        if name.endswith(".weight") and weight.ndim == 2
    }
    for name, (rows, _) in shapes.items():
        layer = layers[name]
        if isinstance(layer, PackedWeight):
            shapes[name] = (rows, layer.columns)
    return shapes


def match_lora(lora: Lora, shapes: Mapping[str, Shape]) -> LoraMatch:
    """Find a LoRA's layers in a network.

    Args:
        lora: From `read_lora`, in any style.
        shapes: From `layer_shapes`.

    Returns:
        Its pairs under the network's own names.

    Raises:
        CheckpointError: None of its layers is there, or one has another shape there.
    """
    names = spellings(shapes)
    pairs = {names[module]: pair for module, pair in lora.pairs.items() if module in names}
    if not pairs:
        first = ", ".join(list(lora.pairs)[:2])
        raise CheckpointError(
            f"{lora.path} is a LoRA of another model: none of its {len(lora.pairs)} layers "
            f"({first}...) is in a Kandinsky 5 transformer; use one that was trained on it."
        )
    wrong = [name for name, pair in pairs.items() if pair.shape != shapes[name]]
    if wrong:
        made_for = " or ".join(fitting_variants(lora)) or "another model"
        raise CheckpointError(
            f"{lora.path} is a LoRA for {made_for}: at {wrong[0]} it changes a weight of "
            f"{pairs[wrong[0]].shape}, and this model has {shapes[wrong[0]]} there; load the "
            "model it was trained on."
        )
    left_out = [module for module in lora.pairs if module not in names]
    return LoraMatch(lora, pairs, (*left_out, *lora.left_over))


def name_layers(lora: Lora) -> LoraMatch:
    """Give a LoRA's layers the names that every network of the family uses, of whatever size.

    Args:
        lora: From `read_lora`, in any style.

    Returns:
        Its pairs under those names.

    Raises:
        CheckpointError: None of its layers is in the family's networks.
    """
    # names depend on the number of blocks alone, and the deepest network has them all
    deepest = max(VARIANTS.values(), key=lambda row: (row.num_visual_blocks, row.num_text_blocks))
    names = spellings(layer_shapes(CrossDiT(deepest, device="meta")))
    found = {names[module]: pair.shape for module, pair in lora.pairs.items() if module in names}
    return match_lora(lora, found)


def fitting_variants(lora: Lora) -> tuple[str, ...]:
    """Return the rows of `variants.py` whose networks have all of a LoRA's layers, in its
    shapes."""
    fitting = []
    for variant, config in VARIANTS.items():
        shapes = layer_shapes(CrossDiT(config, device="meta"))
        names = spellings(shapes)
        if all(
            module in names and pair.shape == shapes[names[module]]
            for module, pair in lora.pairs.items()
        ):
            fitting.append(variant)
    return tuple(fitting)


@torch.no_grad()
def merge_loras(network: nn.Module, loras: Iterable[tuple[LoraMatch, float]]) -> None:
    """Add LoRAs to the weights of a network, in place.

    All of them are summed with a weight in fp32 and rounded once to its own dtype; a packed weight
    is packed again, in 8 bits.

    Args:
        network: Its layers are those that the LoRAs were matched with.
        loras: Each with its strength; 1 is as trained, 0 changes nothing.

    Raises:
        ValueError: A weight is not stored in floating point.
    """
    changes: dict[str, list[tuple[LoraPair, float]]] = defaultdict(list)
    for match, strength in loras:
        if strength != 0:
            for name, pair in match.pairs.items():
                changes[name].append((pair, strength))
    for name, parts in changes.items():
        layer = network.get_submodule(name)
        weight = layer.weight
        assert isinstance(weight, nn.Parameter), name
        packed = layer if isinstance(layer, PackedWeight) and layer.packing else None
        if packed is None and not weight.is_floating_point():
            raise ValueError(
                f"lora: the weight {name} is stored as {weight.dtype}, to which nothing can be "
                "added; load the model in bf16, fp16, fp32 or fp8"
            )
        total = weight.float() if packed is None else packed.numbers(weight, torch.float32)
        for pair, strength in parts:
            total = total + pair.delta(strength, weight.device)
        if packed is not None:
            packed.repack(total)
        else:
            layer.weight = nn.Parameter(total.to(weight.dtype), weight.requires_grad)
