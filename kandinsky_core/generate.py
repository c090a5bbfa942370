"""The whole pipeline: prompt (and image) in, latents and frames out.

`generate` is three steps: `settle` fills what the request leaves open, `prepare` encodes texts and
image and draws the noise, `run` samples. Whoever wants another condition, sparse attention or noise
than a request asks for gives it to `prepare`. Sources of each part are named where it lives.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from .attention import Nabla
from .caching import BlockCache
from .family.settings import SamplingSettings, Task
from .family.shapes import Size, VideoShape
from .family.tasks import check_image
from .family.typed import Settled, Typed
from .family.typed import settle as settle_typed
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
    task, shape, settings = settled.task, settled.shape, settled.settings
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
    positive = _encode_text(pipeline, prompt, task, image)
    negative = None
    if settings.guidance_scale != 1:
        negative = _encode_text(pipeline, settings.negative_prompt, task, image)

    if condition is None:
        condition = _encode_image(pipeline, task, image)
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
    return settled


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
