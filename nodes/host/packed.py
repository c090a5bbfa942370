"""ComfyUI's layers with weights that stay in a GGUF file's blocks.

A weight is unpacked for the call that uses it, on the device that computes, and then goes through
the patches that the host has put on the layer. Where the host itself changes weights (a LoRA on a
model that is loaded whole, merging), it asks the layer's `convert_weight` and `set_weight`, as with
scaled fp8: numbers go out, and come back into blocks of 8 bits.
"""

from __future__ import annotations

from typing import Any

import comfy.float
import comfy.model_management
import comfy.ops
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ...kandinsky_core.models import PackedEmbedding, PackedLinear, PackedWeight

_FUNCTIONS = ("lowvram_function", "function")
"""What follows "weight_" in the names of the host's patches of a layer, in their order; the first
is of hosts after 0.3.75."""


class _HostWeight(PackedWeight):
    """What both layers share."""

    def ready(self, name: str, device: torch.device, dtype: torch.dtype) -> Tensor | None:
        """The weight or the bias, where and as a call needs it."""
        stored = getattr(self, name)
        if stored is None:
            return None
        management = comfy.model_management
        here = management.cast_to(
            stored, None, device, non_blocking=management.device_supports_non_blocking(device)
        )
        functions: list[Any] = []
        for suffix in _FUNCTIONS:
            found = getattr(self, f"{name}_{suffix}", None) or ()
            functions += [found] if callable(found) else found
        # patches are summed as precisely as on a model that is loaded whole
        value = self.numbers(here, torch.float32 if functions else dtype)
        for function in functions:
            value = function(value)
        return value.to(dtype)

    def convert_weight(self, weight: Tensor, **_: Any) -> Tensor:
        """The host's: a copy of the weight in any dtype, or a patched one, as numbers."""
        return self.numbers(weight, torch.float32) if self.is_packed(weight) else weight

    def set_weight(
        self, weight: Tensor, seed: int = 0, *, return_weight: bool = False, **_: Any
    ) -> Tensor | None:
        """The host's: take new numbers, or give back what taking them would come to."""
        if self.packing is not None:
            before = self.weight
            self.repack(weight)
            if not return_weight:
                return None
            rounded, self.weight = self.numbers(self.weight, weight.dtype), before
            return rounded
        rounded = comfy.float.stochastic_rounding(weight, self.weight.dtype, seed=seed)
        if return_weight:
            return rounded
        self.weight = nn.Parameter(rounded, requires_grad=False)
        return None


class PackedOperations(comfy.ops.manual_cast):
    """ComfyUI's `manual_cast` with packed weights."""

    class Linear(_HostWeight, PackedLinear, comfy.ops.manual_cast.Linear):
        def forward_comfy_cast_weights(self, input: Tensor) -> Tensor:  # noqa: A002  the host's name
            if self.packing is None:
                return super().forward_comfy_cast_weights(input)
            weight = self.ready("weight", input.device, input.dtype)
            return F.linear(input, weight, self.ready("bias", input.device, input.dtype))

    class Embedding(_HostWeight, PackedEmbedding, comfy.ops.manual_cast.Embedding):
        def forward_comfy_cast_weights(
            self,
            input: Tensor,  # noqa: A002  the host's name
            out_dtype: torch.dtype | None = None,
        ) -> Tensor:
            if self.packing is None:
                return super().forward_comfy_cast_weights(input, out_dtype=out_dtype)
            # only the rows that are asked for
            rows = self.weight[input.flatten().to(self.weight.device)].to(input.device)
            found = self.numbers(rows, out_dtype or torch.bfloat16)
            return found.view(*input.shape, self.columns)


def holds_packed(network: nn.Module) -> bool:
    """Whether any weight of a network is packed."""
    return any(isinstance(m, PackedWeight) and m.packing for m in network.modules())


def unpacked_state(network: nn.Module, dtype: torch.dtype) -> dict[str, Tensor]:
    """The packed weights of a network as numbers, by their names: for files that others read."""
    return {
        f"{name}.weight": module.numbers(module.weight, dtype)
        for name, module in network.named_modules()
        if isinstance(module, PackedWeight) and module.packing
    }
