"""What the commands that make something share: a task, what is given, the parts of a model."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from .job import Given, Job, ModelParts

if TYPE_CHECKING:
    from ..checkpoint import CheckpointInfo
    from ..pipeline import Pipeline
    from ..video import Clip


class Shown(NamedTuple):
    """What the model is shown."""

    image: np.ndarray | None
    """uint8 (H, W, 3) RGB to start from or to edit."""
    clip: Clip | None
    """Video to go on from."""
    last_frame: np.ndarray | None
    """uint8 (H, W, 3) RGB to end in."""

    @property
    def start(self) -> np.ndarray | None:
        """The image that the result starts from, or that is edited."""
        return self.image if self.clip is None else self.clip.frames[-1]


def with_task(job: Job, info: CheckpointInfo) -> Job:
    """Return the job with the task that was asked for, else the model's first for what is given.

    Raises:
        ValueError: The model was not trained for it.
    """
    from ..family.tasks import check_task, default_task

    given = job.given
    default = default_task(info.tasks, with_image=given != Given())
    if given.extend is not None or given.last_frame is not None:
        default = "i2v"
    task = job.request.task or default
    check_task(task, info.tasks)
    return replace(job, request=replace(job.request, task=task))


def read_shown(given: Given) -> Shown:
    """Read the images and the video that are given.

    Raises:
        ValueError: One cannot be read.
    """
    from ..video import read_image, read_video

    image, last_frame = (
        None if path is None else read_image(path) for path in (given.image, given.last_frame)
    )
    return Shown(image, None if given.extend is None else read_video(given.extend), last_frame)


def with_shown(job: Job, shown: Shown) -> Job:
    """Return the job with what was read.

    Raises:
        ValueError: What is given does not go together.
    """
    from ..generate import check_given

    clip = None if shown.clip is None else shown.clip.frames
    request = replace(job.request, image=shown.image, clip=clip, last_frame=shown.last_frame)
    check_given(request)
    return replace(job, request=request)


def load_parts(parts: ModelParts, info: CheckpointInfo) -> Pipeline:
    """Load the model that was asked for, with its attention backend.

    Args:
        parts: Which parts, and how.
        info: The transformer, as `identify_model` found it.

    Raises:
        ValueError: A part or the backend is missing or does not fit.
    """
    import torch

    from ..attention import load_backend
    from ..pipeline import load_pipeline

    attend = load_backend(parts.attention_backend)
    dtypes = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
    pipeline = load_pipeline(
        info,
        vae=parts.vae,
        text_encoder=parts.text_encoder,
        dtype=None if parts.dtype is None else dtypes[parts.dtype],
        device=parts.device,
        loras=parts.loras,
    )
    return replace(pipeline, attend=attend)
