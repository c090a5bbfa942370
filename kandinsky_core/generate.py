"""The whole pipeline: prompt (and image) in, latents and frames out.

`generate` is three steps: `settle` fills what the request leaves open, `prepare` encodes texts and
image and draws the noise, `run` samples. Whoever wants another condition, sparse attention or noise
than a request asks for gives it to `prepare`. Sources of each part are named where it lives.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch import Tensor

from .attention import Nabla
from .caching import BlockCache
from .family.overrides import SizeClass, row_of_class
from .family.settings import EXAMPLE_FILES, Attention, SamplingSettings, Task
from .family.shapes import Size, VideoShape, resolve_size
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
from .video import cover, to_pixels, to_uint8

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
    """Of the starting noise, from 0 to `seeds.MOST_SEED`."""
    use_triggers: bool = True
    """Put the trigger texts of the pipeline's LoRAs before the prompt."""
    normalize: bool = True
    """Whether image to video ends with the reference's correction of the first frames."""
    unguided_last_step: bool = False
    """Whether the last step goes without guidance, which some find to leave less noise."""


Settled = tuple[VideoShape, SamplingSettings]
"""What `settle` gives: size and frames, and the settings to use."""


@dataclass(frozen=True)
class Prepared:
    """All that a run takes beside the model: settled, encoded and drawn."""

    shape: VideoShape
    """Size in pixels and frames."""
    settings: SamplingSettings
    """Guidance, RoPE scale and the rest."""
    times: Tensor = field(repr=False)
    """Falling from 1 (noise) to 0 (data), (steps + 1,), fp32."""
    noise: Tensor = field(repr=False)
    """What sampling starts from, (1, C, T, H, W) in model space, fp32."""
    positive: TextConditioning = field(repr=False)
    """What to make."""
    negative: TextConditioning | None = field(repr=False)
    """What to guide away from; None without guidance."""
    condition: VisualCondition = field(repr=False)
    """First frame or source image, in model space."""
    nabla: Nabla | None
    """Makes attention among visual tokens sparse; None leaves it dense."""
    unguided_last_step: bool = False
    """Whether the last step goes without guidance."""
    normalize: bool = False
    """Whether the first frames are corrected at the end."""


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
    condition: VisualCondition | None = None,
    nabla: Nabla | None = None,
    noise: Tensor | None = None,
    on_step: Callable[[Step], None] | None = None,
    cache: BlockCache | None = None,
) -> Generated:
    """Make one clip or image.

    Args:
        pipeline: The model.
        request: What to make.
        condition: See `prepare`, and so for the next two.
        nabla: Sparse attention.
        noise: What sampling starts from.
        on_step: See `run`, and so for the last.
        cache: Decides which steps run the network's visual blocks.

    Returns:
        Latents, and frames to be decoded from them.

    Raises:
        ValueError: If the request does not fit the model; the sentence says what would.
    """
    settled = settle(pipeline, request)
    prepared = prepare(pipeline, request, settled, condition=condition, nabla=nabla, noise=noise)
    return run(pipeline, prepared, on_step=on_step, cache=cache)


@torch.no_grad()
def prepare(
    pipeline: Pipeline,
    request: GenerateRequest,
    settled: Settled,
    *,
    condition: VisualCondition | None = None,
    nabla: Nabla | None = None,
    noise: Tensor | None = None,
) -> Prepared:
    """Encode what a request gives and draw its noise.

    Args:
        pipeline: The model.
        request: What to make.
        settled: The request's, from `settle`.
        condition: What the network sees beside the noisy latents, in model space; None encodes
            the request's image as its task has it.
        nabla: Sparse attention; None goes by the settings.
        noise: What sampling starts from, (1, C, T, H, W); None draws it from the request's seed.

    Returns:
        What `run` takes.

    Raises:
        ValueError: A setting is out of its range, or a part does not fit the model or the shape.
    """
    shape, settings = settled
    times = timesteps(settings.num_steps, settings.shift)
    channels = pipeline.transformer.config.latent_channels
    latent_shape = shape.latent_shape(channels, geometry=settings.geometry(pipeline.geometry))
    if noise is None:
        noise = make_noise(latent_shape, request.seed)
    elif noise.shape != latent_shape:
        raise ValueError(
            f"noise has shape {tuple(noise.shape)} and the latents of this request {latent_shape}: "
            "give noise of that shape, or none"
        )
    if condition is not None:
        _check_condition(condition, noise)

    image = None if request.image is None else fit_image(request.image, shape.size)
    prompt = add_triggers(request.prompt, pipeline.triggers if request.use_triggers else ())
    positive = _encode_text(pipeline, prompt, request.task, image)
    negative = None
    if settings.guidance_scale != 1:
        negative = _encode_text(pipeline, settings.negative_prompt, request.task, image)

    if condition is None:
        condition = _encode_image(pipeline, request.task, image)
    return Prepared(
        shape,
        settings,
        times,
        noise,
        positive,
        negative,
        condition,
        nabla or nabla_for(settings),
        request.unguided_last_step,
        normalize=request.normalize and condition.first_frame is not None,
    )


def run(
    pipeline: Pipeline,
    prepared: Prepared,
    *,
    on_step: Callable[[Step], None] | None = None,
    cache: BlockCache | None = None,
) -> Generated:
    """Sample.

    Args:
        pipeline: The model that it was prepared for.
        prepared: From `prepare`.
        on_step: Called after every sampling step; may raise to cancel.
        cache: Decides which steps run the network's visual blocks; None always runs them. Holds
            no tensors afterwards.

    Returns:
        Latents, and frames to be decoded from them.
    """
    settings, times, condition = prepared.settings, prepared.times, prepared.condition
    model = GuidedModel(
        pipeline.transformer,
        prepared.positive,
        prepared.negative,
        settings.guidance_scale,
        condition,
        settings.rope_scale,
        pipeline.attend,
        cache=cache,
        nabla=prepared.nabla,
        unguided_from=times[-2].item() if prepared.unguided_last_step else 0.0,
    )
    latents = prepared.noise.to(pipeline.device)
    if cache is not None:
        cache.begin(len(times) - 1)
    try:
        for step in sample(model, latents, times, condition=condition):
            latents = step.latents
            if on_step is not None:
                on_step(step)
    finally:
        if cache is not None:
            cache.end()

    if prepared.normalize:
        latents = normalize_first_frames(latents)
    in_vae_space = to_vae_space(latents, pipeline.vae.config)
    return Generated(in_vae_space, prepared.shape, settings, pipeline.vae)


def fit_image(image: np.ndarray, size: Size) -> Tensor:
    """Resize an image to cover a size, aspect kept, and cut out its middle.

    Args:
        image: uint8 (H, W, 3) RGB.
        size: Height and width in pixels.

    Returns:
        Pixels (1, 3, 1, height, width) in [-1, 1], fp32.
    """
    pixels = to_pixels(image[None])[:, :, 0]  # (1, 3, H, W)
    return cover(pixels, size)[:, :, None]


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
    latents = to_model_space(pipeline.vae.encode(image.to(device)), pipeline.vae.config)
    if task == "i2v":
        return VisualCondition(first_frame=latents)
    return VisualCondition(source=latents)


def _check_condition(condition: VisualCondition, noise: Tensor) -> None:
    """Refuse given latents of another size than the noise, or that leave nothing to make."""
    for name in ("first_frame", "last_frame", "source"):
        latents = getattr(condition, name)
        fits = (1, *noise.shape[1:2], *noise.shape[3:])
        if latents is not None and (*latents.shape[:2], *latents.shape[3:]) != fits:
            raise ValueError(
                f"condition: {name} has shape {tuple(latents.shape)} and the clip "
                f"{tuple(noise.shape)}; encode frames of the clip's size with the model's VAE"
            )
    condition.impose(noise)
