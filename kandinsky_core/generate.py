"""The whole pipeline: prompt (and image) in, latents and frames out.

`generate` reads top to bottom: settle the request, encode the text, encode the image, sample,
decode. Sources of each part are named where it lives.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from .caching import BlockCache
from .family.overrides import SizeClass, row_of_class
from .family.settings import EXAMPLE_FILES, Attention, SamplingSettings, Task
from .family.shapes import Size, VideoShape, cover_crop, resolve_size
from .flow import (
    Step,
    VisualCondition,
    make_noise,
    normalize_first_frames,
    sample,
    timesteps,
)
from .guided_model import GuidedModel
from .models import ImageVAE, VideoVAE, to_model_space, to_vae_space
from .pipeline import Pipeline, nabla_for
from .text import TextConditioning, add_triggers
from .video import to_pixels, to_uint8

IMAGE_TASKS: tuple[Task, ...] = ("i2v", "i2i")
"""Tasks that start from an image."""
STILL_TASKS: tuple[Task, ...] = ("t2i", "i2i")
"""Tasks whose result is one frame."""


@dataclass(frozen=True)
class GenerateRequest:
    """What to make. Everything left at None comes from the checkpoint's settings."""

    prompt: str
    """What to show."""
    task: Task = "t2v"
    """Text or image (first letter) to video or image (last)."""
    negative_prompt: str | None = None
    """What to guide away from."""
    image: np.ndarray | None = None
    """uint8 (H, W, 3) RGB, for tasks that start from one."""
    height: int | None = None
    """Pixels."""
    width: int | None = None
    """Pixels."""
    size_class: SizeClass = "auto"
    """Sizes and settings to use; auto goes by height and width, and is small without them."""
    num_frames: int | None = None
    """Frames, 4k + 1; always 1 for images."""
    num_steps: int | None = None
    """Euler steps."""
    guidance_scale: float | None = None
    """Classifier-free guidance; 1 turns it off."""
    shift: float | None = None
    """Warp of the times towards noise."""
    rope_scale: tuple[float, float, float] | None = None
    """Divisor of the rotary angles (t, h, w)."""
    attention: Attention | None = None
    """Dense, or NABLA: sparse, for sizes that divide into its tiles."""
    nabla_p: float | None = None
    """Share of attention that NABLA's kept blocks must cover, in [0, 1]."""
    seed: int = 0
    """Of the starting noise, from 0 to 2**64 - 1."""
    use_triggers: bool = True
    """Put the trigger texts of the pipeline's LoRAs before the prompt."""
    normalize: bool = True
    """Whether image to video ends with the reference's correction of the first frames."""
    unguided_last_step: bool = False
    """Whether the last step goes without guidance, which some find to leave less noise."""


@dataclass(frozen=True)
class Generated:
    """A finished clip or image."""

    latents: Tensor = field(repr=False)
    """(1, C, T, H, W) in VAE space, fp32."""
    shape: VideoShape
    """Size in pixels and frames."""
    settings: SamplingSettings
    """Settings that were used."""
    vae: VideoVAE | ImageVAE = field(repr=False)

    @torch.no_grad()
    def frames(
        self,
        *,
        memory_budget: int | None = None,
        on_tile: Callable[[int, int], None] | None = None,
    ) -> Iterator[np.ndarray]:
        """Decode, a few frames at a time.

        Args:
            memory_budget: Bytes that the decoder may take; it chooses the tiles.
            on_tile: Called with tiles done and in all; may raise to cancel.

        Yields:
            uint8 (height, width, 3) RGB frames in order.

        Raises:
            ValueError: If the budget is too small; the sentence says what would do.
        """
        for chunk in self.vae.decode_frames(
            self.latents, memory_budget=memory_budget, on_tile=on_tile
        ):
            yield from to_uint8(chunk)


def default_task(tasks: Sequence[Task], *, with_image: bool) -> Task:
    """The first task of a model that starts from an image, or that does not.

    Where it has none, the one that was meant, which `check_task` refuses.
    """
    for task in tasks:
        if (task in IMAGE_TASKS) == with_image:
            return task
    if with_image:
        return "i2i" if tasks[0] in STILL_TASKS else "i2v"
    return tasks[0]


def check_task(task: Task, tasks: Sequence[Task]) -> None:
    """Refuse a task that a model was not trained for.

    Args:
        task: What is to be made from what.
        tasks: Those of the model.

    Raises:
        ValueError: It is none of them; the sentence names a file that does it.
    """
    if task not in tasks:
        raise ValueError(
            f"task {task} is not what this model was trained for; choose {' or '.join(tasks)}, or "
            f"load a file for it such as {EXAMPLE_FILES[task]}"
        )


def generate(
    pipeline: Pipeline,
    request: GenerateRequest,
    *,
    on_step: Callable[[Step], None] | None = None,
    cache: BlockCache | None = None,
) -> Generated:
    """Make one clip or image.

    Args:
        pipeline: The model.
        request: What to make.
        on_step: Called after every sampling step; may raise to cancel.
        cache: Decides which steps run the network's visual blocks; None always runs them. Holds
            no tensors afterwards.

    Returns:
        Latents, and frames to be decoded from them.

    Raises:
        ValueError: If the request does not fit the model; the sentence says what would.
    """
    shape, settings = settle(pipeline, request)
    geometry = settings.geometry(pipeline.geometry)
    times = timesteps(settings.num_steps, settings.shift)
    if cache is not None:
        cache.begin(settings.num_steps)
    channels = pipeline.transformer.config.latent_channels
    noise = make_noise(shape.latent_shape(channels, geometry=geometry), request.seed)

    image = None if request.image is None else fit_image(request.image, shape.size)
    prompt = add_triggers(request.prompt, pipeline.triggers if request.use_triggers else ())
    positive = _encode_text(pipeline, prompt, request.task, image)
    negative = None
    if settings.guidance_scale != 1:
        negative = _encode_text(pipeline, settings.negative_prompt, request.task, image)

    condition = _encode_image(pipeline, request.task, image)
    model = GuidedModel(
        pipeline.transformer,
        positive,
        negative,
        settings.guidance_scale,
        condition,
        settings.rope_scale,
        pipeline.attend,
        cache=cache,
        nabla=nabla_for(settings),
        unguided_from=times[-2].item() if request.unguided_last_step else 0.0,
    )
    latents = noise
    try:
        for step in sample(model, noise.to(pipeline.device), times, condition=condition):
            latents = step.latents
            if on_step is not None:
                on_step(step)
    finally:
        if cache is not None:
            cache.end()

    if condition.first_frame is not None and request.normalize:
        latents = normalize_first_frames(latents)
    return Generated(to_vae_space(latents, pipeline.vae.config), shape, settings, pipeline.vae)


def fit_image(image: np.ndarray, size: Size) -> Tensor:
    """Resize an image to cover a size, aspect kept, and cut out its middle.

    Args:
        image: uint8 (H, W, 3) RGB.
        size: Height and width in pixels.

    Returns:
        Pixels (1, 3, 1, height, width) in [-1, 1], fp32.
    """
    height, width = size
    crop = cover_crop(image.shape[:2], size)
    pixels = to_pixels(image[None])[:, :, 0]  # (1, 3, H, W)
    if tuple(pixels.shape[2:]) != crop.resized:
        pixels = F.interpolate(pixels, crop.resized, mode="bilinear", antialias=True)
    rows, columns = slice(crop.top, crop.top + height), slice(crop.left, crop.left + width)
    return pixels[:, :, None, rows, columns]


def settle(pipeline: Pipeline, request: GenerateRequest) -> tuple[VideoShape, SamplingSettings]:
    """Fill what a request leaves open.

    Args:
        pipeline: The model.
        request: What to make.

    Returns:
        Size and frames, and the settings to use.

    Raises:
        ValueError: The model cannot do what is asked; the sentence says what would do.
    """
    _check_task(pipeline, request)
    settings = row_of_class(
        pipeline.settings, request.size_class, request.height or 0, request.width or 0
    )
    tiled = replace(settings, attention=request.attention or settings.attention)
    # a checkpoint made for one size alone is not asked for the image's own aspect
    aspects = settings.sizes if request.task == "i2i" or len(settings.sizes) == 1 else None
    size = resolve_size(
        request.height,
        request.width,
        default=settings.default_size,
        geometry=tiled.geometry(pipeline.geometry),
        image_size=None if request.image is None else request.image.shape[:2],
        area=settings.area,
        choices=aspects,
    )
    given = {
        "num_frames": 1 if request.task in STILL_TASKS else request.num_frames,
        "num_steps": request.num_steps,
        "guidance_scale": request.guidance_scale,
        "shift": request.shift,
        "rope_scale": request.rope_scale,
        "negative_prompt": request.negative_prompt,
        "attention": request.attention,
        "nabla_p": request.nabla_p,
    }
    settings = replace(settings, **{k: v for k, v in given.items() if v is not None})
    if nabla_for(settings) is None and request.nabla_p is not None:
        raise ValueError(
            f"nabla_p is {request.nabla_p:g} and attention is dense here: choose attention nabla, "
            "or leave nabla_p out"
        )
    shape = VideoShape(settings.num_frames, *size)
    return shape.check(settings.geometry(pipeline.geometry)), settings


def _check_task(pipeline: Pipeline, request: GenerateRequest) -> None:
    check_task(request.task, pipeline.tasks)
    wants_image = request.task in IMAGE_TASKS
    if wants_image and request.image is None:
        raise ValueError(f"task {request.task} starts from an image, got none; give one")
    if not wants_image and request.image is not None:
        raise ValueError(
            f"task {request.task} takes no image, got one; leave it out, or choose i2v (video from "
            "an image) or i2i (edit)"
        )
    if wants_image and not pipeline.transformer.config.visual_cond:
        raise ValueError(
            f"task {request.task} needs a model with an image input, and this checkpoint makes "
            "images from text only; load a video or image-edit checkpoint"
        )


def _encode_text(
    pipeline: Pipeline, prompt: str, task: Task, image: Tensor | None
) -> TextConditioning:
    looked_at = image[:, :, 0] if image is not None and task == "i2i" else None
    text = pipeline.text_encoder.encode([prompt], task=task, images=looked_at)
    expected = pipeline.transformer.config.text_dim, pipeline.transformer.config.pooled_dim
    found = text.tokens.shape[2], text.pooled.shape[1]
    if found != expected:
        raise ValueError(
            f"the text encoder gives tokens and pooled vectors {found} wide and the transformer "
            f"takes {expected}; load the text encoder that belongs to this model"
        )
    return text


def _encode_image(pipeline: Pipeline, task: Task, image: Tensor | None) -> VisualCondition:
    """Encode the given image (1, 3, 1, H, W) as what the task makes of it."""
    if image is None:
        return VisualCondition()
    device = next(pipeline.vae.parameters()).device
    with torch.no_grad():
        latents = pipeline.vae.encode(image.to(device))
    latents = to_model_space(latents, pipeline.vae.config)
    if task == "i2v":
        return VisualCondition(first_frame=latents)
    return VisualCondition(source=latents)
