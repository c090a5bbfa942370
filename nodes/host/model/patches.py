"""What native nodes ask of a diffusion model's forward pass: replaced blocks, context windows."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor

from ....kandinsky_core.models import AroundBlock

BLOCK = "double_block"
"""The host's name for a block that text and picture share; ours are numbered from 0."""


def around_block(options: Mapping[str, Any]) -> AroundBlock | None:
    """Return what stands around each visual block: patches such as those of SkipLayerGuidanceDiT.

    A patch is called with {"img": tokens (B, S, D)} and {"original_block": ...}, as in the host's
    other video models, and returns such a dictionary.

    Args:
        options: transformer_options of the call.
    """
    replaced = options.get("patches_replace", {}).get("dit", {})
    # longer keys are other packs' for parts of a block
    patches = {key[1]: patch for key, patch in replaced.items() if key[:-1] == (BLOCK,)}
    if not patches:
        return None

    def around(index: int, visual: Tensor, run: Callable[[Tensor], Tensor]) -> Tensor:
        if index not in patches:
            return run(visual)
        original = {"original_block": lambda args: {**args, "img": run(args["img"])}}
        return patches[index]({"img": visual}, original)["img"]

    return around


def shows_ends(options: Mapping[str, Any], num_frames: int) -> tuple[bool, bool]:
    """Return whether a call sees the start and the end of the clip: a context window may lie
    between.

    Args:
        options: transformer_options of the call.
        num_frames: Latent frames of the whole clip.
    """
    window = options.get("context_window")
    if window is None or window.dim != 2:  # (B, C, T, H, W): along time
        return True, True
    return window.index_list[0] == 0, window.index_list[-1] == num_frames - 1
