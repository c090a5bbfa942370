"""Whole sampling runs against diffusers' four Kandinsky 5 pipelines, from the same noise.

diffusers departs from the official code in places. Each is neutralised by name here, and what
the official code does instead is tested against an independent calculation:

* schedule: `OfficialSchedule` of benchmarks/reference.py (ours is tested in core/test_flow.py)
* rounding after RoPE: the fixture `keep_fp32_rotation`
* RoPE scale at small sizes: `_get_scale_factor` replaced (ours comes from core/test_settings.py)
* image sizes: `resolutions` and `check_inputs`, which know the 1024 class only
* I2V normalisation pooled over frames: replaced by a per-frame one written out here
* sampled posterior for the given image: replaced by its mode
* the noise itself: `randn_tensor` replaced by ours with channels moved last
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from diffusers import (
    Kandinsky5I2IPipeline,
    Kandinsky5I2VPipeline,
    Kandinsky5T2IPipeline,
    Kandinsky5T2VPipeline,
)
from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution
from PIL import Image

from kandinsky_core.family.config import ImageVAEConfig, VideoVAEConfig
from kandinsky_core.family.settings import SamplingSettings
from kandinsky_core.family.variants import VARIANTS
from kandinsky_core.flow import make_noise
from kandinsky_core.generate import GenerateRequest, generate
from kandinsky_core.pipeline import Pipeline

HEIGHT, WIDTH, FRAMES, SEED = 32, 48, 21, 3
SETTINGS = SamplingSettings(
    num_steps=4,
    guidance_scale=3.0,
    shift=5.0,
    rope_scale=(1.0, 2.0, 2.0),
    sizes=((HEIGHT, WIDTH), (WIDTH, HEIGHT)),
    num_frames=FRAMES,
    frame_choices=(FRAMES,),
    negative_prompt="bad",
)
IMAGE_SETTINGS = replace(
    SETTINGS, rope_scale=(1.0, 1.0, 1.0), num_frames=1, frame_choices=(1,), shift=3.0
)
VIDEO_VAE, IMAGE_VAE = (
    config((8, 8, 8, 8), layers_per_block=1, norm_num_groups=4, latent_channels=4)
    for config in (VideoVAEConfig, ImageVAEConfig)
)


def randomise(module: torch.nn.Module) -> None:
    torch.manual_seed(5)
    for param in module.parameters():
        if param.ndim > 1:
            torch.nn.init.normal_(param, std=param[0].numel() ** -0.5)


def normalise_per_frame(source: torch.Tensor, reference: torch.Tensor) -> torch.Tensor:
    """Return the official normalisation, one frame at a time, in numbers; (B, F, H, W, C)."""
    result = source.clone()
    for sample in range(source.shape[0]):
        wanted_mean, wanted_std = reference[sample].mean().item(), reference[sample].std().item()
        for frame in range(source.shape[1]):
            x = source[sample, frame]
            mean, std = x.mean().item(), x.std().item()
            new_mean = min(max(wanted_mean, mean - 0.05), mean + 0.1)
            new_std = min(max(wanted_std, std - 0.1), std + 0.25)
            result[sample, frame] = (x - mean) / std * new_std + new_mean
    return result


def picture() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)


@pytest.fixture
def neutralise(monkeypatch: pytest.MonkeyPatch) -> Callable[[type], None]:
    """Remove what a diffusers pipeline does differently from the official code."""

    def apply(pipeline: type) -> None:
        module = sys.modules[pipeline.__module__]
        monkeypatch.setattr(
            module,
            "randn_tensor",
            lambda shape, **_: make_noise((shape[0], shape[-1], *shape[1:-1]), SEED).movedim(1, -1),
        )
        monkeypatch.setattr(DiagonalGaussianDistribution, "sample", lambda self, **_: self.mean)
        monkeypatch.setattr(pipeline, "check_inputs", lambda *_, **__: None)
        if hasattr(pipeline, "_get_scale_factor"):
            monkeypatch.setattr(pipeline, "_get_scale_factor", lambda *_: SETTINGS.rope_scale)
        if hasattr(pipeline, "adaptive_mean_std_normalization"):
            monkeypatch.setattr(
                pipeline, "adaptive_mean_std_normalization", staticmethod(normalise_per_frame)
            )

    return apply


@pytest.mark.parametrize("task", ["t2v", "i2v", "t2i", "i2i"])
@pytest.mark.usefixtures("keep_fp32_rotation")
@torch.no_grad()
def test_final_latents_equal_diffusers(
    task: str, benchmark: Callable, neutralise: Callable[[type], None]
) -> None:
    config = replace(VARIANTS["debug"], visual_cond=task != "t2i")
    video = task.endswith("v")
    settings = SETTINGS if video else IMAGE_SETTINGS
    reference = benchmark("reference")
    transformer, upstream_transformer = reference.build_pair(config)
    vae, upstream_vae = benchmark("vae").build_pair(VIDEO_VAE if video else IMAGE_VAE)
    randomise(vae)
    upstream_vae.load_state_dict(vae.state_dict())
    text = reference.FixedText(config.text_dim, config.pooled_dim)

    image = picture() if task.startswith("i") else None
    pipeline = Pipeline(transformer, text, vae, settings)
    request = GenerateRequest("good", task=task, image=image, seed=SEED)
    ours = generate(pipeline, request)

    pipeline_class = {
        "t2v": Kandinsky5T2VPipeline,
        "i2v": Kandinsky5I2VPipeline,
        "t2i": Kandinsky5T2IPipeline,
        "i2i": Kandinsky5I2IPipeline,
    }[task]
    neutralise(pipeline_class)
    upstream = reference.build_upstream_pipeline(
        pipeline_class, upstream_transformer, upstream_vae, settings.shift
    )
    if not video:
        upstream.resolutions = [(WIDTH, HEIGHT)]
    arguments = dict(text.upstream_arguments(), height=HEIGHT, width=WIDTH, output_type="latent")
    if video:
        arguments["num_frames"] = FRAMES
    if image is not None:
        arguments["image"] = Image.fromarray(image)
    expected = upstream(
        num_inference_steps=settings.num_steps,
        guidance_scale=settings.guidance_scale,
        return_dict=False,
        **arguments,
    )[0].movedim(-1, 1)[:, : config.latent_channels]

    actual = ours.latents * vae.config.scaling_factor
    assert actual.shape == expected.shape
    assert expected.std() > 0.3
    assert (actual - expected).abs().max() < 1e-4 * max(1.0, expected.std().item())
