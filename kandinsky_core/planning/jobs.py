"""Jobs to plan, from what a user says: a model, a task, a size."""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass, replace
from pathlib import Path
from typing import NamedTuple

import torch

from ..family.config import DiTConfig
from ..family.settings import (
    DEFAULT_RELEASES,
    RELEASES,
    Release,
    SamplingSettings,
    Task,
    find_settings,
)
from ..family.shapes import Geometry, Size, VideoShape, pixel_shape
from ..family.tasks import check_task
from ..family.typed import Typed, settle
from ..family.variants import VAE_OF, VAES, VARIANTS
from ..pipeline import BUNDLED, identify_model, nabla_for
from .plan import Job
from .text import TextSize, large_text_size, nano_text_size

USUAL_DENSITY = 0.4
"""Share of blocks that NABLA is taken to keep; the published times of Lite 10 s imply 0.39."""
QWEN_WIDTH = 3584
"""Of text tokens; other widths are nano's."""


@dataclass(frozen=True)
class Request(Typed):
    """A job to plan: of which model, what is typed of its settings, and how weights are kept."""

    model: str | Path
    """A variant of the family, or a file or folder."""
    _: KW_ONLY
    guidance: bool | None = None
    """Whether a negative prompt is run too; None goes by guidance_scale."""
    dtype: torch.dtype | None = None
    """Of the transformer's weights; None leaves it to the file, and is bf16 for a variant."""
    text_dtype: torch.dtype = torch.bfloat16
    """Of the text encoders' weights."""
    vae_dtype: torch.dtype = torch.bfloat16
    """Of the autoencoder's weights."""
    density: float | None = None
    """Share of blocks that NABLA keeps, in (0, 1]."""
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
    model = _find(request)
    vae = VAES[VAE_OF.get(model.variant, "hunyuan")]
    geometry = Geometry.of(model.config, vae)
    settled = settle(
        model.settings,
        # whether an image will be given is not known: a plan is of what the model is for
        replace(request, task=request.task or model.task),
        geometry,
        tasks=model.tasks,
    )
    settings, shape = settled.settings, settled.shape
    nabla = nabla_for(settings)
    density = USUAL_DENSITY if request.density is None else request.density
    if not 0 < density <= 1:
        raise ValueError(f"density is {density}: it must be above 0 and at most 1.")
    bits = request.bits_per_weight
    if bits is not None and not 0 < bits <= 32:
        raise ValueError(f"bits is {bits}: it must be above 0 and at most 32.")
    text = text_size(model.config, settled.task, request.text_dtype, shape.size, bits=bits)
    bits = bits or (None if request.dtype else model.packed_bits)
    guided = settings.guidance_scale != 1.0 if request.guidance is None else request.guidance
    job = Job(
        model.config,
        vae,
        text,
        settled.task,
        shape.latent_grid(geometry),
        num_steps=settings.num_steps,
        guided=guided,
        dtype=(request.dtype or model.dtype) if bits is None else torch.uint8,
        bits_per_weight=bits,
        vae_dtype=request.vae_dtype,
        nabla=nabla,
        density=1.0 if nabla is None else density,
        cached=request.cached,
    )
    return job, settled.trained


def text_size(
    config: DiTConfig, task: Task, dtype: torch.dtype, size: Size, *, bits: float | None = None
) -> TextSize:
    """Return the text encoders that a transformer works with.

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
    """Return frames and pixels of a job."""
    return pixel_shape(job.latent_thw, Geometry.of(job.config, job.vae))


def smaller_sizes(job: Job, settings: SamplingSettings) -> tuple[Size, ...]:
    """Return latent cells (h, w) of the sizes that a checkpoint was made for.

    Args:
        job: Of that checkpoint.
        settings: From its smallest size class up.
    """
    _, space_h, space_w = Geometry.of(job.config, job.vae).compression_thw
    return tuple((height // space_h, width // space_w) for height, width in settings.all_sizes)


class _Model(NamedTuple):
    """What a request's model is."""

    variant: str
    config: DiTConfig
    settings: SamplingSettings
    tasks: tuple[Task, ...]
    task: Task
    """What it is for."""
    dtype: torch.dtype
    """Of the weights."""
    packed_bits: float | None
    """Of a weight, where a GGUF file packs them."""


def _find(request: Request) -> _Model:
    name = str(request.model)
    if name in BUNDLED or name not in VAE_OF:  # nano is both, and its file says more
        if name not in BUNDLED and not Path(request.model).exists():
            raise ValueError(
                f"model {name!r} is neither a file nor one of {', '.join({**VAE_OF, **BUNDLED})}; "
                "give one of them"
            )
        info = identify_model(request.model)
        assert isinstance(info.config, DiTConfig), info
        assert info.settings is not None and info.release is not None, info
        return _Model(
            info.release.variant,
            info.config,
            info.settings,
            info.tasks,
            info.main_task,
            info.dtype,
            info.packed_bits,
        )
    tasks = tuple(dict.fromkeys(row.task for row in RELEASES if row.variant == name))
    row = DEFAULT_RELEASES[name]
    task = request.task or row.task
    check_task(task, tasks)
    seconds = row.seconds
    if seconds is not None and request.num_frames is not None:
        middle = max(RELEASES[row].frame_choices) * 3 // 2
        seconds = 10 if request.num_frames > middle else seconds
    settings, _ = find_settings(Release(name, task, seconds, row.stage))
    return _Model(name, VARIANTS[name], settings, tasks, task, torch.bfloat16, None)
