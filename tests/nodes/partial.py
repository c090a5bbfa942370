"""Partial loading, as low-VRAM modes do it, where there is one device only.

What stays behind is put on the meta device, whose values nothing can compute with: whoever takes a
weight past the host's cast, or computes where a weight happens to be, fails.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

SHARE = 4
"""The budget is the model's size over this."""
SCALES = ("scale_weight", "scale_input")
"""Factors of scaled fp8, which the host's layers fetch themselves, past the cast."""


class PartialLoading:
    """Let whatever runs next load a part of its model only: `partially()`."""

    def __init__(self, host: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        self._host, self._monkeypatch = host, monkeypatch
        self._real: dict[int, Tensor] = {}
        self._behind: dict[nn.Module, list[tuple[nn.Module, str, Tensor]]] = {}
        self.left: dict[str, set[str]] = {}
        """Class of a model -> weights that stayed behind when one was last loaded."""

    def __call__(self) -> None:
        management = self._host.module("comfy.model_management")
        patcher = self._host.module("comfy.model_patcher").ModelPatcher
        load, unpatch, cast = patcher.partially_load, patcher.unpatch_model, management.cast_to

        def load_some(own, device_to, extra_memory=0, force_patch_weights=False):
            assert extra_memory > own.model_size()  # what the host asks for is all of it
            # what is asked for comes on top of what an earlier call has loaded
            budget = max(0, own.model_size() // SHARE - own.loaded_size())
            given = {"extra_memory": budget, "force_patch_weights": force_patch_weights}
            result = load(own, device_to, **given)
            self._leave(own.model)
            return result

        def bring_and_unpatch(own, *args, **named):
            self._bring(own.model)
            return unpatch(own, *args, **named)

        def fetch(weight, *args, **named):
            return cast(self._real.get(id(weight), weight), *args, **named)

        management.unload_all_models()
        self._monkeypatch.setattr(patcher, "partially_load", load_some)
        self._monkeypatch.setattr(patcher, "unpatch_model", bring_and_unpatch)
        self._monkeypatch.setattr(management, "cast_to", fetch)
        self._monkeypatch.setattr(self._host.module("comfy.ops"), "cast_to", fetch)

    def check(self, patcher: Any, *, patches: bool = False) -> None:
        """Assert that more than half of a loaded model is behind, and with `patches` that weights
        which are to be patched are among it."""
        model = patcher.model
        assert model.model_lowvram
        assert self.left[type(model).__name__]
        loaded, whole = patcher.loaded_size(), patcher.model_size()
        assert loaded < whole / 2, (loaded, whole)
        assert (model.lowvram_patch_counter > 0) == patches

    def end(self) -> None:
        """Give every model its weights again."""
        self._host.module("comfy.model_management").unload_all_models()
        for model in list(self._behind):
            self._bring(model)

    def _leave(self, model: nn.Module) -> None:
        behind = self._behind.setdefault(model, [])
        for path, module in model.named_modules():
            # text is computed where the token embedding is (ComfyUI up to 0.3.75 at least)
            here = isinstance(module, nn.Embedding)
            if here or getattr(module, "comfy_patched_weights", False):
                continue
            for name, parameter in list(module.named_parameters(recurse=False)):
                if name not in SCALES:
                    meta = torch.empty_like(parameter, device="meta")
                    away = nn.Parameter(meta, requires_grad=False)
                    setattr(module, name, away)
                    self._real[id(away)] = parameter
                    behind.append((module, name, away))
                    self.left.setdefault(type(model).__name__, set()).add(f"{path}.{name}")

    def _bring(self, model: nn.Module) -> None:
        for module, name, away in self._behind.pop(model, ()):
            setattr(module, name, self._real.pop(id(away)))
