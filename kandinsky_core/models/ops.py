"""The layer factory a network is built from.

`TorchOps` holds torch's own layers, except that each computes in the dtype of its input
whatever dtype its weights are stored in. That one rule carries the whole precision policy:
a caller who feeds fp32 gets an fp32 result (time embedding, modulation), and the large
matrices run in the dtype of the activations. ComfyUI's `operations` follow the same rule,
so either can be injected.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..weights import packed_layers


def _cast(weight: Tensor | None, like: Tensor) -> Tensor | None:
    return None if weight is None else weight.to(like.dtype)


class TorchOps:
    """Layers of torch that compute in the dtype of their input."""

    class Linear(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return F.linear(x, self.weight.to(x.dtype), _cast(self.bias, x))

    class LayerNorm(nn.LayerNorm):
        def forward(self, x: Tensor) -> Tensor:
            weight, bias = _cast(self.weight, x), _cast(self.bias, x)
            return F.layer_norm(x, self.normalized_shape, weight, bias, self.eps)

    class RMSNorm(nn.RMSNorm):
        def forward(self, x: Tensor) -> Tensor:
            return F.rms_norm(x, self.normalized_shape, _cast(self.weight, x), self.eps)


class PackedOps:
    """`TorchOps` with weights that may stay packed."""

    Linear = packed_layers.Linear
    LayerNorm = TorchOps.LayerNorm
    RMSNorm = TorchOps.RMSNorm


Ops = Any
"""A namespace with `Linear`, `LayerNorm` and `RMSNorm` classes that take torch's arguments."""

RMS_EPS = torch.finfo(torch.float32).eps
"""Epsilon of the query/key norms: torch's default for fp32 input, fixed whatever the dtype."""
