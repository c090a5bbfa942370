"""Layers whose weights stay in a GGUF file's blocks and are unpacked while they are used.

`PackedLinear` and `PackedEmbedding` are what such layers are mixed with: torch's here, and
ComfyUI's in the node pack. Letters: R rows of a weight, C columns.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .packed import pack_q8_0, unpack

_REPACKED = "Q8_0"


class PackedWeight(nn.Module):
    """A linear layer or an embedding whose `weight` (R, C) may be packed rows instead."""

    weight: nn.Parameter
    packing: str | None = None
    """Type of the file's blocks; None while the weight is numbers."""

    @property
    def columns(self) -> int:
        """Numbers in a row, C."""
        raise NotImplementedError

    def hold(self, packed: Tensor, packing: str) -> None:
        """Take packed rows (R, bytes of a row) uint8, of a type in `PACKINGS`."""
        self.packing = packing
        self.weight = nn.Parameter(packed, requires_grad=False)

    def repack(self, weight: Tensor) -> None:
        """Take new values (R, C) for packed ones; they go into blocks of Q8_0."""
        self.hold(pack_q8_0(weight), _REPACKED)

    def is_packed(self, weight: Tensor) -> bool:
        """Return whether this, a weight of the layer or a copy of one, is bytes; in any dtype."""
        return self.packing is not None and weight.ndim == 2 and weight.shape[1] != self.columns

    def numbers(self, weight: Tensor, dtype: torch.dtype) -> Tensor:
        """Return the weight, or some of its rows, or a copy in any dtype and place, as numbers (R,
        C)."""
        if not self.is_packed(weight):
            return weight.to(dtype)
        assert self.packing is not None
        return unpack(weight.to(torch.uint8), self.packing, dtype)


class PackedLinear(PackedWeight):
    """The part for linear layers."""

    in_features: int

    @property
    def columns(self) -> int:
        return self.in_features


class PackedEmbedding(PackedWeight):
    """The part for embeddings."""

    embedding_dim: int

    @property
    def columns(self) -> int:
        return self.embedding_dim


class Linear(PackedLinear, nn.Linear):
    """torch's, computing in the dtype of its input."""

    def forward(self, x: Tensor) -> Tensor:
        bias = None if self.bias is None else self.bias.to(x.dtype)
        return F.linear(x, self.numbers(self.weight, x.dtype), bias)


class Embedding(PackedEmbedding, nn.Embedding):
    """torch's."""

    dtype = torch.bfloat16
    """Of the result."""

    def forward(self, ids: Tensor) -> Tensor:
        rows = self.numbers(self.weight[ids.flatten()], self.dtype)
        return rows.view(*ids.shape, self.columns)


def hold_instead(
    network: nn.Module, name: str, packed: Tensor, packing: str, dtype: torch.dtype
) -> None:
    """Put a layer that holds a packed weight in the place of one of torch's.

    Args:
        network: It is changed.
        name: Of a linear layer or an embedding in it.
        packed: Its weight (R, bytes of a row), uint8.
        packing: Key of `PACKINGS`.
        dtype: Of an embedding's result; a linear layer computes in that of its input.
    """
    layer = network.get_submodule(name)
    instead: Linear | Embedding
    if isinstance(layer, nn.Linear):
        instead = Linear(layer.in_features, layer.out_features, device="meta")
        instead.bias = layer.bias
    else:
        assert isinstance(layer, nn.Embedding), layer
        instead = Embedding(layer.num_embeddings, layer.embedding_dim, device="meta")
        instead.dtype = dtype
    instead.hold(packed, packing)
    network.set_submodule(name, instead.train(layer.training))


def packed_names(network: nn.Module, packings: Mapping[str, str | None]) -> dict[str, str]:
    """Return which weights of a network can stay packed.

    Args:
        network: Some of its layers are `PackedWeight`s.
        packings: Name of a weight -> type of its blocks in the file, None if it is not packed.

    Returns:
        Name -> type.
    """
    layers: dict[str, Any] = dict(network.named_modules())
    return {
        name: packing
        for name, packing in packings.items()
        if packing is not None
        and name.endswith(".weight")
        and isinstance(layers.get(name.removesuffix(".weight")), PackedWeight)
    }
