"""Jobs to plan, from what a user says: a model, a task, a size."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import torch

from ..attention import Nabla
from ..family.config import DiTConfig
from ..family.settings import (
    DEFAULT_RELEASES,
    RELEASES,
    Attention,
    Release,
    SamplingSettings,
    Task,
    find_settings,
)
from ..family.shapes import Geometry, Size, VideoShape, pixel_shape
from ..family.variants import VAE_OF, VAES, VARIANTS
from ..pipeline import identify_model, nabla_for
from .plan import Job
from .text import TextSize, large_text_size, nano_text_size

USUAL_DENSITY = 0.4
"""Share of blocks that NABLA is taken to keep; the published times of Lite 10 s imply 0.39."""
QWEN_WIDTH = 3584
"""Of text tokens; other widths are nano's."""


@dataclass(frozen=True)
class Request:
    """What a user says of a job; None leaves it to the checkpoint."""

    model: str | Path
    """A variant of the family, or a file or folder."""
    task: Task | None = None
    """From what to what."""
    size: Size | None = None
    """Height and width in pixels."""
    num_frames: int | None = None
    """Frames."""
    num_steps: int | None = None
    """Steps."""
    guidance: bool | None = None
    """Whether to guide."""
    dtype: torch.dtype | None = None
    """Of the transformer's weights."""
    text_dtype: torch.dtype = torch.bfloat16
    """Of the text encoders' weights."""
    vae_dtype: torch.dtype = torch.bfloat16
    """Of the autoencoder's weights."""
    attention: Attention | None = None
    """Dense or NABLA."""
    density: float | None = None
    """Share of blocks that NABLA keeps, in [0, 1]."""
    cached: bool = False
    """Whether MagCache is on."""
    bits_per_weight: float | None = None
    """Of the transformer's and Qwen's weights where GGUF files pack them; None leaves it to the
    file."""


def make_job(request: Request) -> tuple[Job, SamplingSettings]:
    """Turn a request into a job.

    Returns:
        The job, and the checkpoint's settings, from its smallest size class up.

    Raises:
        ValueError: There is no such model, it does not do the task, or the size does not fit.
    """
    variant, config, root, task, stored, bits = _model(request)
    height, width = request.size or root.default_size
    settings = root.for_size(height, width)
    if request.attention is not None:
        settings = replace(settings, attention=request.attention)
    nabla: Nabla | None = nabla_for(settings)
    density = 1.0 if nabla is None else (request.density or USUAL_DENSITY)
    if not 0 < density <= 1:
        raise ValueError(f"density is {density}: it must be above 0 and at most 1.")
    if request.bits_per_weight is not None and not 0 < request.bits_per_weight <= 32:
        raise ValueError(f"bits is {request.bits_per_weight}: it must be above 0 and at most 32.")
    vae = VAES[VAE_OF.get(variant, "hunyuan")]
    geometry = settings.geometry(Geometry.of(config, vae))
    frames = request.num_frames or settings.num_frames
    latent_thw = VideoShape(frames, height, width).latent_grid(geometry)
    text = text_size(
        config, task, request.text_dtype, (height, width), bits=request.bits_per_weight
    )
    bits = request.bits_per_weight or (None if request.dtype else bits)
    guided = settings.guidance_scale != 1.0 if request.guidance is None else request.guidance
    job = Job(
        config,
        vae,
        text,
        task,
        latent_thw,
        num_steps=request.num_steps or settings.num_steps,
        guided=guided,
        dtype=(request.dtype or stored) if bits is None else torch.uint8,
        bits_per_weight=bits,
        vae_dtype=request.vae_dtype,
        nabla=nabla,
        density=density,
        cached=request.cached,
    )
    return job, root


def text_size(
    config: DiTConfig, task: Task, dtype: torch.dtype, size: Size, *, bits: float | None = None
) -> TextSize:
    """The text encoders that a transformer works with.

    Args:
        config: The transformer.
        task: Chooses the template.
        dtype: Of the encoders' weights; nano's are in fp32.
        size: Height and width in pixels of what is made.
        bits: Of a weight of the large language model where a GGUF file packs it.
    """
    if config.text_dim == QWEN_WIDTH:
        return large_text_size(task, dtype, size, bits)
    return nano_text_size()


def shape_of(job: Job) -> VideoShape:
    """Frames and pixels of a job."""
    return pixel_shape(job.latent_thw, Geometry.of(job.config, job.vae))


def smaller_sizes(job: Job, settings: SamplingSettings) -> tuple[Size, ...]:
    """Latent cells (h, w) of the sizes that a checkpoint was made for.

    Args:
        job: Of that checkpoint.
        settings: From its smallest size class up.
    """
    _, space_h, space_w = Geometry.of(job.config, job.vae).compression_thw
    return tuple((height // space_h, width // space_w) for height, width in settings.all_sizes)


def _model(
    request: Request,
) -> tuple[str, DiTConfig, SamplingSettings, Task, torch.dtype, float | None]:
    """Variant, dimensions, settings, task, dtype and bits of the weights."""
    name = str(request.model)
    if name not in VAE_OF:
        if not Path(request.model).exists():
            raise ValueError(
                f"model {name!r} is neither a file nor one of {', '.join(VAE_OF)}; give one of them"
            )
        info = identify_model(request.model)
        task = _checked(request.task or info.task or "t2v", info.tasks, name)
        assert isinstance(info.config, DiTConfig), info
        assert info.settings is not None, info
        return info.variant, info.config, info.settings, task, info.dtype, info.packed_bits
    tasks = tuple(dict.fromkeys(row.task for row in RELEASES if row.variant == name))
    row = DEFAULT_RELEASES[name]
    task = _checked(request.task or row.task, tasks, name)
    seconds = row.seconds
    if seconds is not None and request.num_frames is not None:
        middle = max(RELEASES[row].frame_choices) * 3 // 2
        seconds = 10 if request.num_frames > middle else seconds
    settings, _ = find_settings(Release(name, task, seconds, row.stage))
    return name, VARIANTS[name], settings, task, torch.bfloat16, None


def _checked(task: Task, tasks: tuple[Task, ...], name: str) -> Task:
    if tasks and task not in tasks:
        raise ValueError(f"task {task} is not one of {name}: it makes {', '.join(tasks)}")
    return task
