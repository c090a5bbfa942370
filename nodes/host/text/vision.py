"""Pictures for ComfyUI's Qwen2.5-VL, so that it sees in them what the reference sees."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from einops import rearrange
from torch import Tensor, nn


def as_picture(image: Tensor) -> dict[str, Any]:
    """Return an image (1, 3, H, W) uint8, sides multiples of 28, as the host takes it among
    tokens."""
    return {"type": "image", "data": rearrange(image, "1 c h w -> 1 h w c") / 255}


@contextmanager
def picture_order(tower: nn.Module) -> Iterator[None]:
    """Have the host's vision tower return a picture's tokens row by row, as the language model was
    trained.

    Inside, the tower works window by window. ComfyUI 0.3.75 leaves the tokens in that order, later
    versions put them back; which it is shows in whether the last layer's output is returned as it
    is.
    """
    last: list[Tensor] = []

    def remember(_merger: nn.Module, _args: Any, output: Tensor) -> None:
        last[:] = [output]

    def put_back(module: Any, args: tuple[Any, ...], output: Tensor) -> Tensor | None:
        if output is not last[0]:
            return None
        order, _ends = module.get_window_index(args[1])
        return output[torch.argsort(order).to(output.device)]

    hooks = [tower.merger.register_forward_hook(remember), tower.register_forward_hook(put_back)]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
