"""The visual blocks of ComfyUI's own Kandinsky 5 (0.4.0 and later), for MagCache.

Its network looks up each block in transformer_options for something to call in place of it. So a
wrapper around the network puts there, for the first block, what runs them all inside of what
stands around the blocks, and for the others what returns its input. Patches of other nodes are
called where they belong.
Letters: B batch, S visual tokens, D model dim.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import comfy.patcher_extension
from comfy.model_patcher import ModelPatcher
from torch import Tensor, nn

from .caching import KEY, around_blocks
from .model import is_kandinsky
from .patches import BLOCK

Patch = Callable[[dict[str, Any], dict[str, Any]], dict[str, Any]]
"""What the host calls in place of a block: (arguments, {"original_block": ...}) -> {"x": ...}."""

TOKENS = "x"
"""The visual tokens (B, S, D) among the arguments of a block."""
POSITIONAL = (TOKENS, "context", "time_embed")
"""The arguments that the network passes to its blocks by place, in order."""


def is_native_kandinsky(model: ModelPatcher) -> bool:
    """Return whether a MODEL is ComfyUI's own Kandinsky 5, told by its blocks."""
    network = getattr(model.model, "diffusion_model", None)
    blocks = getattr(network, "visual_transformer_blocks", None)
    return isinstance(blocks, nn.ModuleList) and not is_kandinsky(model)


def with_native_blocks(model: ModelPatcher) -> ModelPatcher:
    """Copy a native MODEL so that a cache on it has its place around the visual blocks.

    Raises:
        ValueError: The MODEL is another model.
    """
    if not is_native_kandinsky(model):
        raise ValueError(
            "model: expected Kandinsky 5, from Load Model (Kandinsky 5) or ComfyUI's own loader, "
            f"found {type(model.model).__name__}; other models have caches of their own."
        )
    patched = model.clone()
    kind = comfy.patcher_extension.WrappersMP.DIFFUSION_MODEL
    patched.remove_wrappers_with_key(kind, KEY)
    patched.add_wrapper_with_key(kind, KEY, _around_network)
    return patched


def _around_network(
    executor: Any, *args: Any, transformer_options: dict[str, Any], **named: Any
) -> Tensor:
    """Return one call of the network, with the cache of this run around its blocks if there is
    one."""
    around = around_blocks(transformer_options)
    options = transformer_options
    if around is not None:
        blocks: nn.ModuleList = executor.class_obj.visual_transformer_blocks
        replaced = options.get("patches_replace", {})
        others: dict[Any, Patch] = replaced.get("dit", {})

        def run_all(given: dict[str, Any], _original: dict[str, Any]) -> dict[str, Any]:
            def run(visual: Tensor) -> Tensor:
                for index, block in enumerate(blocks):
                    options["block_index"] = index  # what the network gives its blocks
                    visual = _run(block, {**given, TOKENS: visual}, others.get((BLOCK, index)))
                return visual

            return {**given, TOKENS: around(given[TOKENS], run)}

        ours: dict[Any, Patch] = {(BLOCK, index): _pass for index in range(len(blocks))}
        ours[BLOCK, 0] = run_all
        options = {**options, "patches_replace": {**replaced, "dit": {**others, **ours}}}
    return executor(*args, transformer_options=options, **named)


def _pass(given: dict[str, Any], _original: dict[str, Any]) -> dict[str, Any]:
    """Stand in place of a block that ran already."""
    return given


def _run(block: nn.Module, given: dict[str, Any], patch: Patch | None) -> Tensor:
    """Run one block, or what another node put in its place."""

    def original(given: dict[str, Any]) -> dict[str, Any]:
        by_place = [given[name] for name in POSITIONAL]
        by_name = {name: value for name, value in given.items() if name not in POSITIONAL}
        return {**given, TOKENS: block(*by_place, **by_name)}

    if patch is None:
        return original(given)[TOKENS]
    return patch(given, {"original_block": original})[TOKENS]
