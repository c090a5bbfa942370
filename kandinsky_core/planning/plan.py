"""What a job will take in memory, stage by stage, before anything is loaded.

Weights come from the dimensions of the parts, what sampling takes from `models/dit_memory.py`, what
the autoencoder takes from `models/vae/memory.py`. The stages follow each other: text encoding,
encoding of a given image, sampling, decoding. Text encoding is counted roughly; beside the
weights of its encoder the rest is small.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Literal, get_args

import torch

from ..attention import Nabla
from ..family.config import DiTConfig, ImageVAEConfig, VideoVAEConfig
from ..family.settings import Task
from ..family.shapes import Geometry, pixel_shape
from ..models import (
    ImageVAE,
    Tiles,
    VideoVAE,
    cache_bytes,
    call_bytes,
    fit_tiles,
    tiled_bytes,
)
from .costs import count_block_parameters, count_parameters, step_cost
from .text import TextSize

GIB = 2**30
FP32 = 4
"""Bytes of a float32 number."""
SAMPLER_TENSORS = 5
"""Latents in fp32 that a step holds: two states, two predictions, and the denoised guess."""

Offload = Literal["resident", "components", "streamed"]
"""What is on the device at a time: all models; the one that works; of the one that works, outer
layers and one block, or more where there is room (what ComfyUI calls partial loading)."""
Direction = Literal["encode", "decode"]
BOTH_PROMPTS = "sampling, both prompts at once"
"""Name of the stage that a job can do without."""
OFFLOADS: tuple[Offload, ...] = get_args(Offload)


@dataclass(frozen=True)
class Job:
    """What is to be made, with which weights."""

    config: DiTConfig
    """Dimensions of the transformer."""
    vae: VideoVAEConfig | ImageVAEConfig
    """Dimensions of the autoencoder."""
    text: TextSize
    """Size of the text encoders."""
    task: Task
    """From what to what."""
    latent_thw: tuple[int, int, int]
    """Latent cells per axis (t, h, w)."""
    batch: int = 1
    """Clips or images at once."""
    num_steps: int = 50
    """Steps; they cost time, not memory."""
    guided: bool = True
    """Whether a negative prompt is run too."""
    dtype: torch.dtype = torch.bfloat16
    """The transformer's weights are stored in; uint8 where a file packs them."""
    bits_per_weight: float | None = None
    """What they take on average; None is what `dtype` says."""
    compute: torch.dtype | None = None
    """The large matrices compute in; None is `dtype`, or bf16 for weights of 8 bits."""
    vae_dtype: torch.dtype = torch.bfloat16
    """Of the autoencoder."""
    nabla: Nabla | None = None
    """Sparse attention, None for dense."""
    density: float = 1.0
    """Share of blocks that it keeps."""
    cached: bool = False
    """Whether MagCache keeps what the blocks did, of each prompt."""
    device_type: str = "cuda"
    """Where it runs, as torch names it."""

    @property
    def tokens(self) -> int:
        """Visual tokens of one clip."""
        return math.prod(self.latent_thw) // self.config.patch_volume

    def weight_bytes(self, count: int) -> int:
        """Count the bytes of so many of the transformer's weights."""
        return int(count * (self.bits_per_weight or 8 * self.dtype.itemsize) / 8)

    @property
    def compute_dtype(self) -> torch.dtype:
        """What the large matrices compute in."""
        if self.compute is not None:
            return self.compute
        return torch.bfloat16 if self.dtype.itemsize == 1 else self.dtype

    @property
    def frames_bytes(self) -> int:
        """Of all frames in fp32, which stay in main memory for the node after the decoder."""
        shape = pixel_shape(self.latent_thw, Geometry.of(self.config, self.vae))
        return self.batch * 3 * FP32 * shape.num_frames * shape.height * shape.width

    @property
    def operations(self) -> float:
        """Of the whole sampling."""
        cost = step_cost(
            self.config, self.tokens, text_tokens=self.text.tokens, density=self.density
        )
        return cost.operations * self.batch * self.num_steps * (2 if self.guided else 1)


@dataclass(frozen=True)
class Stage:
    """One stage of a job; all numbers are bytes."""

    name: str
    """What the stage is called before a reader."""
    weights: int
    """Weights of the model that works."""
    least_weights: int
    """Of these, what must be there at the same time where blocks are streamed."""
    tensors: int
    """Tensors alive at the peak beside the weights."""
    library: int = 0
    """What libraries may take besides."""
    needed: bool = True
    """Whether the job cannot do without; it can run both prompts one after the other."""
    direction: Direction | None = None
    """Of the autoencoder."""
    tiling: Tiles | None = None
    """Tiles that the autoencoder works in; None for other stages."""

    @property
    def work(self) -> int:
        """All but weights."""
        return self.tensors + self.library


@dataclass(frozen=True)
class Plan:
    """What a job takes in one way of offloading."""

    job: Job
    offload: Offload
    stages: tuple[Stage, ...]
    all_weights: int
    """Bytes of all models together."""

    def weights(self, stage: Stage) -> int:
        """Return the bytes of weights on the device in a stage, at least."""
        if self.offload == "resident":
            return self.all_weights
        return stage.weights if self.offload == "components" else stage.least_weights

    def peak(self, stage: Stage) -> int:
        """Return bytes on the device in a stage, at least."""
        return self.weights(stage) + stage.work

    @property
    def bounding(self) -> Stage:
        """The stage that needs most, of those that the job cannot do without."""
        return max((stage for stage in self.stages if stage.needed), key=self.peak)

    @property
    def needed(self) -> int:
        """Bytes without which the job does not run."""
        return self.peak(self.bounding)

    @property
    def main_memory(self) -> int:
        """Bytes of main memory that a job takes beside its device, at most; 0 on the CPU.

        They are the weights that wait there while others work, and the frames once decoded.
        """
        if self.job.device_type == "cpu":
            return 0
        return max(
            self.all_weights
            - self.weights(stage)
            + self.job.frames_bytes * (stage.direction == "decode")
            for stage in self.stages
            if stage.needed
        )

    def with_tiles(self, memory: int) -> Plan:
        """Return the same with as large tiles as the autoencoder finds room for in so many
        bytes."""
        stages = (
            stage
            if stage.direction is None
            else _autoencoder(self.job, stage.direction, memory - self.weights(stage))
            for stage in self.stages
        )
        return replace(self, stages=tuple(stages))


def plan_job(job: Job, offload: Offload = "components") -> Plan:
    """Count the least that a job takes; its autoencoder works in the smallest tiles.

    Args:
        job: What is to be made.
        offload: What is on the device at a time.
    """
    weights = job.weight_bytes(count_parameters(job.config))
    blocks = job.config.num_visual_blocks - 1
    least = weights - job.weight_bytes(blocks * count_block_parameters(job.config))
    stages = [Stage("text encoding", job.text.weights, job.text.least_weights, job.text.work)]
    if job.task in ("i2v", "i2i"):
        stages.append(_autoencoder(job, "encode"))
    stages.append(Stage("sampling", weights, least, sampling_bytes(job, 1)))
    if job.guided:
        both = sampling_bytes(job, 2)
        stages.append(Stage(BOTH_PROMPTS, weights, least, both, needed=False))
    stages.append(_autoencoder(job, "decode"))
    return Plan(job, offload, tuple(stages), job.text.weights + weights + stages[-1].weights)


def _autoencoder(job: Job, direction: Direction, free: int | None = None) -> Stage:
    """Plan decoding, or encoding one image, in the smallest tiles, or in what fits so many
    bytes."""
    time, height, width = job.latent_thw
    shape = (1, job.vae.latent_channels, time if direction == "decode" else 1, height, width)
    given = FP32 * job.batch * math.prod(shape) if direction == "decode" else 0
    tiling = Tiles.smallest(shape[2:])
    if free is not None:
        tiling = fit_tiles(
            job.vae, shape, free - given, job.vae_dtype, direction=direction, must_fit=False
        )
    tensors, allowed = (
        tiled_bytes(job.vae, tiling, 1, job.vae_dtype, direction=direction, with_library=both)
        for both in (False, True)
    )
    weights = _vae_parameters(job.vae) * job.vae_dtype.itemsize
    return Stage(
        f"VAE {direction}",
        weights,
        weights,
        given + tensors,
        allowed - tensors,
        direction=direction,
        tiling=tiling,
    )


def sampling_bytes(job: Job, prompts: int) -> int:
    """Return tensors alive at the peak of a step, with so many prompts in one call."""
    rows = job.batch * prompts
    cells = math.prod(job.latent_thw)
    given = rows * job.config.input_channels * cells * job.compute_dtype.itemsize
    given += SAMPLER_TENSORS * job.batch * job.config.latent_channels * cells * FP32
    if job.cached:
        residuals = job.batch * (2 if job.guided else 1)
        given += cache_bytes(
            job.config, job.tokens, rows=rows, residuals=residuals, dtype=job.compute_dtype
        )
    return given + call_bytes(
        job.config,
        job.tokens,
        batch=rows,
        text_tokens=job.text.tokens,
        dtype=job.compute_dtype,
        stored=job.dtype,
        nabla=job.nabla,
        density=job.density,
        device_type=job.device_type,
    )


def best_plan(job: Job, memory: int) -> Plan | None:
    """Return the plan that moves least weights about among those that fit; None if none does.

    Args:
        job: What is to be made.
        memory: Bytes that are free on the device.
    """
    for offload in OFFLOADS:
        plan = plan_job(job, offload)
        if plan.needed <= memory:
            return plan
    return None


def shorter_that_fits(job: Job, memory: int) -> Plan | None:
    """Return the plan of the longest clip of a job's size that fits; None if not even an image
    does."""
    for time in range(job.latent_thw[0], 0, -1):
        plan = best_plan(replace(job, latent_thw=(time, *job.latent_thw[1:])), memory)
        if plan is not None:
            return plan
    return None


def smaller_that_fits(job: Job, memory: int, sizes: Sequence[tuple[int, int]]) -> Plan | None:
    """Return the plan of the largest frame that fits with a job's number of frames; None if none
    does.

    Args:
        job: What is wanted.
        memory: Bytes that are free on the device.
        sizes: Latent cells (h, w) to choose from.
    """
    for size in sorted(sizes, key=math.prod, reverse=True):
        if math.prod(size) < math.prod(job.latent_thw[1:]):
            plan = best_plan(replace(job, latent_thw=(job.latent_thw[0], *size)), memory)
            if plan is not None:
                return plan
    return None


@lru_cache(maxsize=8)
def _vae_parameters(config: VideoVAEConfig | ImageVAEConfig) -> int:
    network = (VideoVAE if isinstance(config, VideoVAEConfig) else ImageVAE)(config, device="meta")
    return sum(parameter.numel() for parameter in network.parameters())
