"""What is typed at nodes, settled with a MODEL's checkpoint and with what is set on it already."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from comfy.model_patcher import ModelPatcher

from ....kandinsky_core import family
from ....kandinsky_core.family import Geometry, Settled, Size, Task, Typed, pixel_shape
from .chosen import chosen_before
from .model import model_info


def settle(
    model: ModelPatcher,
    typed: Typed,
    *,
    tasks: Sequence[Task] = (),
    latent: dict[str, Any] | None = None,
    image_size: Size | None = None,
) -> Settled:
    """Fill what was left open; see the core's `settle`.

    Args:
        model: From `load_model`.
        typed: What was typed.
        tasks: What may be made; empty is what the checkpoint is for.
        latent: LATENT whose size and length stand in place of those typed.
        image_size: Height and width in pixels of an image to start from.

    Raises:
        ValueError: The model cannot make it; the sentence says what it could.
    """
    info = model_info(model)
    geometry = Geometry.of(info.config, model.model.space.config)
    if latent is not None:
        samples = latent["samples"]
        grid = (samples.shape[2] if samples.ndim == 5 else 1, *samples.shape[-2:])
        shape = pixel_shape(grid, geometry)
        typed = replace(typed, num_frames=shape.num_frames, height=shape.height, width=shape.width)
    return family.settle(
        info.settings,
        typed,
        geometry,
        tasks=tasks or (info.main_task,),
        image_size=image_size,
        before=chosen_before(model),
    )
