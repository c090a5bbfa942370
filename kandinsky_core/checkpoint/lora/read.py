"""Read a LoRA: small products of matrices that are added to the weights of a network.

A file is read whatever style it was written in; the layers keep the names it gives them, which
`match_lora` resolves among those of a real network. The official camera LoRAs hold a trigger text
in their metadata, which belongs before the prompt (kandinskylab/kandinsky-5, `load_adapter`).

Letters: R rank, O outputs, I inputs of a linear layer.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from ...errors import CheckpointError
from ...weights import WeightFiles, read_header
from .names import Role, Style, other_adapter, parse_name
from .scale import AlphaRule, read_alpha_rule

TRIGGER_KEY = "trigger"
"""Metadata entry of the trigger text in the official LoRAs and ours."""
_TRIGGER_KEYS = (TRIGGER_KEY, "modelspec.trigger_phrase")


@dataclass(frozen=True)
class LoraPair:
    """What a LoRA adds to one linear layer: scale * up @ down."""

    down: Tensor
    """First matrix of the product (R, I)."""
    up: Tensor
    """Second matrix of the product (O, R)."""
    scale: float
    """Factor of the product: alpha over rank."""

    @property
    def rank(self) -> int:
        return self.down.shape[0]

    @property
    def shape(self) -> tuple[int, int]:
        """Of the layer's weight, (O, I)."""
        return self.up.shape[0], self.down.shape[1]

    def delta(self, strength: float, device: torch.device | str | None = None) -> Tensor:
        """Return what is added to the weight (O, I), in fp32."""
        up, down = (each.to(device, torch.float32) for each in (self.up, self.down))
        return (strength * self.scale) * (up @ down)


@dataclass(frozen=True)
class Lora:
    """A LoRA as its file holds it."""

    path: Path
    """What the user gave."""
    style: Style
    """How most of its tensors are named."""
    pairs: Mapping[str, LoraPair] = field(repr=False)
    """Layer, as the file names it without prefix -> what is added to it."""
    left_over: tuple[str, ...]
    """Tensors of the file that are no part of a pair."""
    alpha_source: str
    """Where the pairs' alpha comes from."""
    metadata: Mapping[str, str] = field(repr=False)
    """Texts in the file's header."""

    @property
    def trigger(self) -> str:
        """Text that belongs before the prompt; empty if there is none."""
        return next((self.metadata[key] for key in _TRIGGER_KEYS if self.metadata.get(key)), "")

    @property
    def ranks(self) -> list[int]:
        """Ranks that occur, in order."""
        return sorted({pair.rank for pair in self.pairs.values()})


def read_lora(path: str | Path) -> Lora:
    """Read a LoRA; its tensors stay views of the memory-mapped file.

    Args:
        path: A .safetensors file, or PEFT's folder of one and its configuration.

    Returns:
        Its pairs of matrices, with their scales.

    Raises:
        CheckpointError: The file is missing, damaged, no LoRA, or of a kind that is not supported.
    """
    header = read_header(path)
    if kind := other_adapter(header.tensors):
        raise CheckpointError(f"{path} is {kind}, which is not supported: use a plain LoRA.")
    parts: dict[str, dict[Role, str]] = {}
    styles: Counter[Style] = Counter()
    left_over = []
    for name in header.tensors:
        parsed = parse_name(name)
        if parsed is None or parsed.role in parts.setdefault(parsed.module, {}):
            left_over.append(name)
            continue
        parts[parsed.module][parsed.role] = name
        styles[parsed.style] += 1
    for module, roles in list(parts.items()):
        if not {"down", "up"} <= roles.keys():
            left_over += parts.pop(module).values()
    if not parts:
        raise CheckpointError(
            f"{path} is no LoRA: expected pairs of tensors such as lora_A and lora_B, found "
            f"{', '.join(sorted(header.tensors)[:2])}; give the LoRA's own file."
        )

    names = [name for roles in parts.values() for name in roles.values()]
    with WeightFiles(header.path, {name: header.tensors[name] for name in names}) as files:
        tensors = dict(files)
    file = next(iter(header.tensors.values())).file
    has_alphas = all("alpha" in roles for roles in parts.values())
    rule = AlphaRule() if has_alphas else read_alpha_rule(file, header.metadata)
    pairs = {
        module: _pair(header.path, module, {r: tensors[n] for r, n in roles.items()}, rule)
        for module, roles in parts.items()
    }
    (style, _), *_ = styles.most_common(1)
    source = "its tensors" if has_alphas else rule.source
    return Lora(header.path, style, pairs, tuple(left_over), source, header.metadata)


def _pair(path: Path, module: str, tensors: Mapping[Role, Tensor], rule: AlphaRule) -> LoraPair:
    down, up = tensors["down"], tensors["up"]
    fits = down.ndim == up.ndim == 2 and down.shape[0] == up.shape[1] > 0
    if not fits or not (down.is_floating_point() and up.is_floating_point()):
        raise CheckpointError(
            f"{path} holds no product of matrices for {module}: its two tensors are "
            f"{tuple(down.shape)} {down.dtype} and {tuple(up.shape)} {up.dtype}, expected "
            "(rank, inputs) and (outputs, rank) of floating point; download it again."
        )
    rank = down.shape[0]
    if "alpha" in tensors:
        if tensors["alpha"].numel() != 1:
            raise CheckpointError(
                f"{path} holds an alpha of shape {tuple(tensors['alpha'].shape)} for {module}, "
                "expected one number; download it again."
            )
        return LoraPair(down, up, float(tensors["alpha"]) / rank)
    try:
        return LoraPair(down, up, rule.scale(module, rank))
    except ValueError as error:
        raise CheckpointError(
            f"{path} cannot be scaled by {rule.source}: {error}; it belongs to another LoRA, "
            "put it elsewhere."
        ) from error
