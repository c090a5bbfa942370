"""What to make, and what of it a model can: a request meets the checkpoint's settings."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from ..family.given import check_overlap, check_room
from ..family.shapes import check_size
from ..family.tasks import check_image
from ..family.typed import Settled, Typed
from ..family.typed import settle as settle_typed
from ..pipeline import Pipeline, nabla_for


@dataclass(frozen=True)
class GenerateRequest(Typed):
    """What to make: a prompt, what it starts from, and what is typed of its settings."""

    prompt: str
    """What to show."""
    image: np.ndarray | None = None
    """uint8 (H, W, 3) RGB, for tasks that start from one."""
    seed: int = 0
    """Of the starting noise, from 0 to `seeds.MOST_SEED`."""
    use_triggers: bool = True
    """Put the trigger texts of the pipeline's LoRAs before the prompt."""
    normalize: bool = True
    """Whether image to video ends with the reference's correction of the first frames."""
    unguided_last_step: bool = False
    """Whether the last step goes without guidance, which some find to leave less noise."""
    clip: np.ndarray | None = None
    """uint8 (F, H, W, 3) RGB to go on from, in its size. Experimental, and so is `last_frame`: the
    weights were trained to continue one frame, and for no last one."""
    overlap: int = 1
    """Last frames of `clip` that the result begins with, 4k + 1; several hand on the motion."""
    last_frame: np.ndarray | None = None
    """uint8 (H, W, 3) RGB to end in; the same as `image` makes a loop."""

    @property
    def gives_frames(self) -> bool:
        """Whether frames beside a first one are given, which the weights were not trained for."""
        return self.clip is not None or self.last_frame is not None

    @property
    def asked_size(self) -> tuple[int | None, int | None]:
        """Height and width in pixels that are asked for; those of `clip` where there is one."""
        return (self.height, self.width) if self.clip is None else self.clip.shape[1:3]

    @property
    def before(self) -> np.ndarray | None:
        """Frames of `clip` to put before the result, uint8 (F, H, W, 3); None without a clip."""
        return None if self.clip is None else self.clip[: -self.overlap]


def check_given(request: GenerateRequest) -> None:
    """Refuse frames that a request gives and that do not go together.

    Raises:
        ValueError: There is an image beside a clip to extend, a last frame without a first, or the
            task is another than i2v.
    """
    if not request.gives_frames:
        return
    what = "last frame" if request.clip is None else "clip to extend"
    if request.task not in (None, "i2v"):
        raise ValueError(f"task {request.task} takes no {what}: leave it out, or choose i2v")
    if request.clip is not None and request.image is not None:
        raise ValueError(
            "an image is given beside the clip to extend, which goes on from its own last frames: "
            "give one of the two"
        )
    if request.clip is None and request.image is None:
        raise ValueError(
            "a last frame is given without a first one: give an image, or a clip to extend"
        )


def settle(pipeline: Pipeline, request: GenerateRequest) -> Settled:
    """Fill what a request leaves open.

    Args:
        pipeline: The model.
        request: What to make.

    Returns:
        Task, size, frames and settings to use.

    Raises:
        ValueError: The model cannot do what is asked; the sentence says what would do.
    """
    check_given(request)
    if request.gives_frames:
        request = replace(request, task="i2v")
    if request.clip is not None:
        request = _started_by_clip(pipeline, request, request.clip)
    image = request.image
    settled = settle_typed(
        pipeline.settings,
        request,
        pipeline.geometry,
        tasks=pipeline.tasks,
        image_size=None if image is None else image.shape[:2],
    )
    takes_image = pipeline.transformer.config.visual_cond
    check_image(settled.task, is_given=image is not None, is_taken=takes_image)
    nabla_for(settled.settings)  # refuses a P out of its range
    if request.gives_frames:
        check_room(
            settled.shape.num_frames,
            first=1 if request.clip is None else request.overlap,
            last=request.last_frame is not None,
            geometry=pipeline.geometry,
        )
    return settled


def _started_by_clip(
    pipeline: Pipeline, request: GenerateRequest, clip: np.ndarray
) -> GenerateRequest:
    """Return the request of image to video from the end of a clip (F, H, W, 3), in its size."""
    height, width = clip.shape[1:3]
    typed = request.height or height, request.width or width
    if typed != (height, width):
        raise ValueError(
            f"the clip to extend is {height}x{width} and {typed[0]}x{typed[1]} is asked for: "
            "leave height and width out"
        )
    try:
        check_size(height, width, pipeline.geometry)
    except ValueError as error:
        raise ValueError(f"the clip to extend: {error} Resize it.") from error
    check_overlap(request.overlap, len(clip), pipeline.geometry)
    return replace(request, image=clip[-1], height=height, width=width)
