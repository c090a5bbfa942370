"""All that a run takes beside the model: texts and pictures encoded, noise drawn."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from ..attention import Nabla
from ..family.config import VideoVAEConfig
from ..family.settings import SamplingSettings, Task
from ..family.shapes import Size, VideoShape
from ..family.typed import Settled
from ..flow import VisualCondition, make_noise, timesteps
from ..models import encode_last_frame, to_model_space
from ..pipeline import Pipeline, nabla_for
from ..text import TextConditioning, add_triggers
from ..video import cover, to_pixels
from .request import GenerateRequest


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
    """Text that says what to make."""
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
            the request's image or frames as its task has them.
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
        condition = _encode_pictures(pipeline, request, task, image, shape.size)
    # joined to a clip or led to a frame, the result must stay at its colours
    is_plain = condition.first_frame is not None and not request.gives_frames
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
        normalize=request.normalize and is_plain,
    )


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


def _encode_pictures(
    pipeline: Pipeline, request: GenerateRequest, task: Task, image: Tensor | None, size: Size
) -> VisualCondition:
    """Encode what a request shows as what its task makes of it; the image (1, 3, 1, H, W) fits."""
    device = next(pipeline.vae.parameters()).device

    def encode(pixels: Tensor) -> Tensor:
        return to_model_space(pipeline.vae.encode(pixels.to(device)), pipeline.vae.config)

    if task == "i2i" and image is not None:
        return VisualCondition(source=encode(image))
    start = image if request.clip is None else to_pixels(request.clip[-request.overlap :])
    end = request.last_frame
    last = None
    if end is not None:
        config = pipeline.vae.config
        assert isinstance(config, VideoVAEConfig), "only video models have a last frame"
        last = encode_last_frame(encode, fit_image(end, size), config)
    return VisualCondition(None if start is None else encode(start), last_frame=last)


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
