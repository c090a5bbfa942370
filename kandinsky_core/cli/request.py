"""What the options of a command ask for: a task, an image, a request and the parts of a model."""

from __future__ import annotations

import argparse
from dataclasses import replace
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from .options import parse_lora

if TYPE_CHECKING:
    from ..checkpoint import CheckpointInfo
    from ..family.settings import Task
    from ..generate import GenerateRequest
    from ..pipeline import Pipeline
    from ..video import Clip


class Given(NamedTuple):
    """What a command line shows the model."""

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


def choose_task(args: argparse.Namespace, info: CheckpointInfo) -> Task:
    """Return the task that was asked for, else the model's first for what was given.

    Raises:
        ValueError: The model was not trained for it.
    """
    from ..family.tasks import check_task, default_task

    given = (args.image, args.extend, args.last_frame)
    default = default_task(info.tasks, with_image=any(path is not None for path in given))
    if args.extend is not None or args.last_frame is not None:
        default = "i2v"
    task = args.task or default
    check_task(task, info.tasks)
    return task


def read_given(args: argparse.Namespace) -> Given:
    """Read the images and the video that were given.

    Raises:
        ValueError: One cannot be read, or there is an overlap without a video.
    """
    from ..video import read_image, read_video

    if args.overlap is not None and args.extend is None:
        raise ValueError(
            f"--overlap {args.overlap} is of the video to go on from: give it with --extend"
        )
    image, last_frame = (
        None if path is None else read_image(path) for path in (args.image, args.last_frame)
    )
    return Given(image, None if args.extend is None else read_video(args.extend), last_frame)


def make_request(args: argparse.Namespace, task: Task, given: Given) -> GenerateRequest:
    """Return what to make.

    Raises:
        ValueError: What is given does not go together.
    """
    from ..generate import GenerateRequest, check_given

    request = GenerateRequest(
        prompt=args.prompt,
        task=task,
        negative_prompt=args.negative_prompt,
        image=given.image,
        height=args.height,
        width=args.width,
        size_class=args.size_class,
        num_frames=args.frames,
        num_steps=args.steps,
        guidance_scale=args.cfg,
        shift=args.shift,
        rope_scale=tuple(args.rope_scale) if args.rope_scale else None,
        attention=None if args.attention == "auto" else args.attention,
        nabla_p=args.nabla_p,
        seed=args.seed,
        use_triggers=not args.no_lora_trigger,
        normalize=args.normalize,
        unguided_last_step=args.unguided_last_step,
        clip=None if given.clip is None else given.clip.frames,
        overlap=1 if args.overlap is None else args.overlap,
        last_frame=given.last_frame,
    )
    check_given(request)
    return request


def load_parts(args: argparse.Namespace, info: CheckpointInfo) -> Pipeline:
    """Load the model that was asked for, with its attention backend.

    Args:
        args: Which parts, and how.
        info: The transformer, as `identify_model` found it.

    Raises:
        ValueError: A part or the backend is missing or does not fit.
    """
    import torch

    from ..attention import load_backend
    from ..pipeline import load_pipeline

    attend = load_backend(args.attention_backend)
    dtypes = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
    pipeline = load_pipeline(
        info,
        vae=args.vae,
        text_encoder=args.text_encoder,
        dtype=dtypes.get(args.dtype),
        device=args.device,
        loras=[parse_lora(each) for each in args.lora],
    )
    return replace(pipeline, attend=attend)
