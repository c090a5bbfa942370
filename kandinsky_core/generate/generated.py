"""Sampling what was prepared, and what comes of it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from ..attention import Nabla
from ..caching import BlockCache
from ..family.settings import SamplingSettings
from ..family.shapes import VideoShape
from ..flow import Step, VisualCondition, normalize_first_frames, sample
from ..guided_model import GuidedModel
from ..models import ImageVAE, VideoVAE, to_vae_space
from ..pipeline import Pipeline
from ..video import to_uint8
from .prepared import Prepared, prepare
from .request import GenerateRequest, settle


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
