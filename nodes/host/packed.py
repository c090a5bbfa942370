"""ComfyUI's layers with weights that may stay in a GGUF file's blocks, and the patcher they need.

A weight is unpacked for the call that uses it, on the device that computes, and then goes through
its patches: LoRAs, merged models, hooks. Where the host would write a patched weight into a layer,
`PackedPatcher` leaves the patch there instead, so that memory stays what the file takes and the
result is exact.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import comfy.float
import comfy.hooks
import comfy.lora
import comfy.model_management
import comfy.utils
import torch
from comfy.model_patcher import LowVramPatch, ModelPatcher
from comfy.ops import manual_cast
from torch import Tensor, nn
from torch.nn import functional as F

from ...kandinsky_core.weights import PackedEmbedding, PackedLinear, PackedWeight

Patch = Callable[[Tensor], Tensor]


class _HostWeight(PackedWeight):
    """What both layers share."""

    # hosts with dynamic memory leave the weight out of layers that load by the host's own method
    _load_from_state_dict = nn.Module._load_from_state_dict

    patch: Patch | None = None
    """What the host would have written into the weight."""
    hook_patch: Patch | None = None
    """The same of the hooks that are on now."""

    def weight_patches(self) -> list[Patch]:
        """Return what the weight goes through, in order."""
        placed: list[Patch] = list(getattr(self, "weight_function", ()))
        lowvram = getattr(self, "weight_lowvram_function", None)  # hosts after 0.3.75
        if lowvram is not None:
            placed.insert(0, lowvram)
        # an offloaded layer has the host's own, of the same patches
        is_placed = lowvram is not None or any(isinstance(f, LowVramPatch) for f in placed)
        own = [self.patch, *placed] if self.patch and not is_placed else placed
        return [*own, self.hook_patch] if self.hook_patch else own

    def ready_weight(self, device: torch.device, dtype: torch.dtype) -> Tensor:
        """Return the patched weight as numbers, where and as a call needs it."""
        patches = self.weight_patches()
        # patches are summed in fp32, as the host does where it writes them into a weight
        weight = self.numbers(_fetch(self.weight, device), torch.float32 if patches else dtype)
        for patch in patches:
            weight = patch(weight)
        return weight.to(dtype)

    def convert_weight(self, weight: Tensor, **_: Any) -> Tensor:
        """Return the host's: a copy of the weight in any dtype, or a patched one, as numbers."""
        return self.numbers(weight, torch.float32) if self.is_packed(weight) else weight

    def set_weight(
        self,
        weight: Tensor,
        inplace_update: bool = False,
        seed: int = 0,
        return_weight: bool = False,
        **_: Any,
    ) -> Tensor | None:
        """Return the host's: take new numbers, or give back what taking them would come to."""
        if self.packing is not None:
            assert return_weight, "PackedPatcher writes nothing into packed weights"
            return weight
        rounded = comfy.float.stochastic_rounding(weight, self.weight.dtype, seed=seed)
        if return_weight:
            return rounded
        if inplace_update:  # the host keeps `weight`, and would change it with the layer's
            self.weight.data.copy_(rounded)
        else:
            self.weight = nn.Parameter(rounded, requires_grad=False)
        return None


class PackedOperations(manual_cast):
    """ComfyUI's `manual_cast` with packed weights."""

    class Linear(_HostWeight, PackedLinear, manual_cast.Linear):
        bias_function: list[Patch]

        def forward_comfy_cast_weights(self, input: Tensor) -> Tensor:  # noqa: A002  the host's name
            if self.packing is None:
                return super().forward_comfy_cast_weights(input)
            bias = None
            if self.bias is not None:
                # copied where patches change it in place
                bias = _fetch(self.bias, input.device, input.dtype, copy=bool(self.bias_function))
                for patch in self.bias_function:
                    bias = patch(bias)
            return F.linear(input, self.ready_weight(input.device, input.dtype), bias)

    class Embedding(_HostWeight, PackedEmbedding, manual_cast.Embedding):
        def forward_comfy_cast_weights(
            self,
            input: Tensor,  # noqa: A002  the host's name
            out_dtype: torch.dtype | None = None,
        ) -> Tensor:
            if self.packing is None:
                return super().forward_comfy_cast_weights(input, out_dtype=out_dtype)
            dtype = out_dtype or torch.bfloat16
            if self.weight_patches():
                return F.embedding(input, self.ready_weight(input.device, dtype))
            # only the rows that are asked for
            rows = self.weight[input.flatten().to(self.weight.device)].to(input.device)
            return self.numbers(rows, dtype).view(*input.shape, self.columns)


def _fetch(
    stored: Tensor, device: torch.device, dtype: torch.dtype | None = None, *, copy: bool = False
) -> Tensor:
    management = comfy.model_management
    waits = not management.device_supports_non_blocking(device)
    return management.cast_to(stored, dtype, device, non_blocking=not waits, copy=copy)


class PackedPatcher(ModelPatcher):
    """The host's patcher of a model some of whose weights are packed."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        # the faster mode keeps patched weights of every hook, and switches by copying them
        self.hook_mode = comfy.hooks.EnumHookMode.MinVram

    def patch_weight_to_device(self, key: str, *args: Any, **kwargs: Any) -> Any:
        """Patch a weight; of a packed one the layer takes note."""
        layer = self._packed(key)
        if layer is None:
            return super().patch_weight_to_device(key, *args, **kwargs)
        layer.patch = None
        if key in self.patches:
            layer.patch = partial(_apply, self.patches[key], key)
        if kwargs.get("return_weight"):  # hosts after 0.3.75, to save it
            return layer.ready_weight(layer.weight.device, torch.float32)
        return None

    def patch_hook_weight_to_device(
        self,
        hooks: Any,
        combined_patches: dict[str, Any],
        key: str,
        original_weights: dict[str, Any],
        memory_counter: Any,
    ) -> None:
        """Do the same with the hooks of a prompt."""
        layer = self._packed(key)
        if layer is None:
            super().patch_hook_weight_to_device(
                hooks, combined_patches, key, original_weights, memory_counter
            )
        elif key in combined_patches:
            original = {key: original_weights[key]} if original_weights else None
            layer.hook_patch = partial(
                _apply, combined_patches[key], key, original_weights=original
            )

    def unpatch_hooks(self, whitelist_keys_set: set[str] | None = None) -> None:
        """Take hooks off again."""
        for name, layer in packed_layers(self.model).items():
            if not whitelist_keys_set or f"{name}.weight" in whitelist_keys_set:
                layer.hook_patch = None
        super().unpatch_hooks(whitelist_keys_set)

    def unpatch_model(self, device_to: Any = None, unpatch_weights: bool = True) -> None:
        """Take all patches off again."""
        if unpatch_weights:
            for layer in packed_layers(self.model).values():
                layer.patch = None
        super().unpatch_model(device_to, unpatch_weights)

    def _packed(self, key: str) -> _HostWeight | None:
        name, _, leaf = key.rpartition(".")
        if leaf != "weight":
            return None
        layer = comfy.utils.get_attr(self.model, name) if name else None
        return layer if isinstance(layer, _HostWeight) and layer.packing else None


def _apply(
    patches: list[Any], key: str, weight: Tensor, original_weights: dict[str, Any] | None = None
) -> Tensor:
    return comfy.lora.calculate_weight(patches, weight, key, original_weights=original_weights)


def packed_layers(network: nn.Module) -> dict[str, _HostWeight]:
    """Return the layers of a network whose weights are packed, by name."""
    return {
        name: module
        for name, module in network.named_modules()
        if isinstance(module, _HostWeight) and module.packing
    }


def unpacked_state(network: nn.Module, dtype: torch.dtype) -> dict[str, Tensor]:
    """Return the packed weights of a network by name, patched, as numbers in main memory, for files
    that others read."""
    return {
        f"{name}.weight": layer.ready_weight(layer.weight.device, dtype).cpu()
        for name, layer in packed_layers(network).items()
    }
