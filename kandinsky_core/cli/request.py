"""What the options of a command ask for: a task, an image, a request and the parts of a model."""

from __future__ import annotations

import argparse
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from .options import parse_lora

if TYPE_CHECKING:
    from ..checkpoint import CheckpointInfo
    from ..family.settings import Task
    from ..generate import GenerateRequest
    from ..pipeline import Pipeline


def choose_task(args: argparse.Namespace, info: CheckpointInfo) -> Task:
    """The task that was asked for, else the model's first for what was given.

    Raises:
        ValueError: The model was not trained for it.
    """
    from ..family.tasks import check_task, default_task

    task = args.task or default_task(info.tasks, with_image=args.image is not None)
    check_task(task, info.tasks)
    return task


def read_given_image(args: argparse.Namespace) -> np.ndarray | None:
    """The image (H, W, 3), uint8, if one was given."""
    from ..video import read_image

    return read_image(args.image) if args.image else None


def make_request(args: argparse.Namespace, task: Task, image: np.ndarray | None) -> GenerateRequest:
    """What to make."""
    from ..generate import GenerateRequest

    return GenerateRequest(
        prompt=args.prompt,
        task=task,
        negative_prompt=args.negative_prompt,
        image=image,
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
    )


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
