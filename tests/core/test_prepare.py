"""What `generate` is made of, on the bundled model, against a loop written out by hand."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch
from torch import Tensor

from kandinsky_core.attention import Nabla
from kandinsky_core.flow import VisualCondition
from kandinsky_core.generate import GenerateRequest, generate, prepare, run, settle
from kandinsky_core.models import to_model_space, to_vae_space
from kandinsky_core.pipeline import Pipeline, load_pipeline
from kandinsky_core.text import TextConditioning

SIZE = {"height": 64, "width": 64}
SHAPE = (1, 16, 3, 8, 8)
REQUEST = GenerateRequest("a red circle", num_frames=9, num_steps=3, normalize=False, **SIZE)
SCALE, SHIFT = 3.0, 2.0
SPARSE = Nabla(0.3, (1, 2, 2), (1, 1, 1))


@pytest.fixture(scope="module")
def pipeline() -> Pipeline:
    """Return the bundled model."""
    return load_pipeline()


def drawn(seed: int, *shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def picture(seed: int = 0, frames: int = 1) -> np.ndarray:
    pixels = np.random.default_rng(seed).integers(0, 256, (frames, 64, 64, 3), dtype=np.uint8)
    return pixels if frames > 1 else pixels[0]


@torch.no_grad()
def by_hand(
    pipeline: Pipeline,
    noise: Tensor,
    *,
    first: Tensor | None = None,
    last: Tensor | None = None,
    nabla: Nabla | None = None,
    scale: float = SCALE,
) -> Tensor:
    """Three Euler steps, latents in VAE space; first and last (1, C, G, H, W) are given frames."""

    def impose(x: Tensor) -> Tensor:
        x = x.clone()
        if first is not None:
            x[:, :, : first.shape[2]] = first
        if last is not None:
            x[:, :, -last.shape[2] :] = last
        return x

    mask = torch.zeros(1, 1, *noise.shape[2:])
    if first is not None:
        mask[:, :, : first.shape[2]] = 1
    if last is not None:
        mask[:, :, -last.shape[2] :] = 1

    def velocity(x: Tensor, t: Tensor, text: TextConditioning) -> Tensor:
        seen = torch.cat([x, torch.zeros_like(x), mask], dim=1)
        assert text.mask.all()
        scales = pipeline.settings.rope_scale
        return pipeline.transformer(
            seen, t[None], text.tokens, text.pooled, None, rope_scale=scales, nabla=nabla
        )

    positive = pipeline.text_encoder.encode([REQUEST.prompt])
    negative = pipeline.text_encoder.encode([pipeline.settings.negative_prompt])
    equal = torch.tensor([1, 2 / 3, 1 / 3, 0])
    x = noise
    for t, t_next in pairwise(SHIFT * equal / (1 + (SHIFT - 1) * equal)):
        x = impose(x)
        v = velocity(x, t, positive)
        if scale != 1:
            without = velocity(x, t, negative)
            v = without + scale * (v - without)
        x = x + (t_next - t) * v
    return to_vae_space(impose(x), pipeline.vae.config)


def far(a: Tensor, b: Tensor) -> float:
    return (a - b).abs().max().item()


@pytest.mark.parametrize("scale", [SCALE, 1.0])
def test_a_run_is_the_loop_by_hand(pipeline: Pipeline, scale: float) -> None:
    request = replace(REQUEST, guidance_scale=scale, shift=SHIFT, seed=5)
    expected = by_hand(pipeline, drawn(5, *SHAPE), scale=scale)
    result = generate(pipeline, request)
    assert far(result.latents, expected) < 1e-4
    assert result.shape.num_frames == 9
    prepared = prepare(pipeline, request, settle(pipeline, request))
    assert torch.equal(run(pipeline, prepared).latents, result.latents)
    assert torch.equal(run(pipeline, prepared).latents, result.latents)  # nothing was used up


def test_any_condition_sparsity_and_noise_can_be_given(pipeline: Pipeline) -> None:
    noise, first, last = (drawn(i, 1, 16, n, 8, 8) for i, n in enumerate((3, 1, 1)))
    condition = VisualCondition(first, last_frame=last)
    given = {"condition": condition, "nabla": SPARSE, "noise": noise}
    request = replace(REQUEST, guidance_scale=SCALE, shift=SHIFT, seed=9)
    expected = by_hand(pipeline, noise, first=first, last=last, nabla=SPARSE)
    assert far(generate(pipeline, request, **given).latents, expected) < 1e-4
    for name in given:  # each of them counts
        without = generate(pipeline, request, **(given | {name: None})).latents
        assert far(without, expected) > 1e-2, name


def test_a_condition_takes_the_place_of_the_image(pipeline: Pipeline) -> None:
    noise, first = drawn(0, *SHAPE), drawn(1, 1, 16, 2, 8, 8)
    request = replace(REQUEST, task="i2v", image=picture(), guidance_scale=SCALE, shift=SHIFT)
    result = generate(pipeline, request, condition=VisualCondition(first), noise=noise)
    assert far(result.latents, by_hand(pipeline, noise, first=first)) < 1e-4
    with torch.no_grad():
        pixels = torch.from_numpy(picture()).movedim(-1, 0)[None, :, None] / 127.5 - 1
        own = to_model_space(pipeline.vae.encode(pixels), pipeline.vae.config)
    result = generate(pipeline, request, noise=noise)
    assert far(result.latents, by_hand(pipeline, noise, first=own)) < 1e-4


@torch.no_grad()
def encoded(pipeline: Pipeline, frames: np.ndarray) -> Tensor:
    """Latents in model space of uint8 frames (F, H, W, 3)."""
    pixels = torch.from_numpy(frames).permute(3, 0, 1, 2)[None] / 127.5 - 1
    return to_model_space(pipeline.vae.encode(pixels), pipeline.vae.config)


def test_a_clip_goes_on_from_its_last_frames(pipeline: Pipeline) -> None:
    clip = picture(0, 8)
    request = replace(
        REQUEST, task="i2v", clip=clip, overlap=5, guidance_scale=SCALE, shift=SHIFT, num_frames=17
    )
    noise = drawn(5, 1, 16, 5, 8, 8)
    expected = by_hand(pipeline, noise, first=encoded(pipeline, clip[3:]))
    # the size is the clip's; the reference's correction, which would move the seam, stays off
    request = replace(request, height=None, width=None, normalize=True, seed=5)
    result = generate(pipeline, request)
    assert far(result.latents, expected) < 1e-4
    assert np.array_equal(request.before, clip[:3])
    one = by_hand(pipeline, noise, first=encoded(pipeline, clip[7:]))
    assert far(generate(pipeline, replace(request, overlap=1)).latents, one) < 1e-4


@pytest.mark.parametrize("extends", [False, True])
def test_a_clip_ends_in_the_last_frame(pipeline: Pipeline, extends: bool) -> None:
    start, end = picture(0, 2), picture(1)
    given = {"clip": start} if extends else {"image": start[1]}
    request = replace(
        REQUEST, task="i2v", last_frame=end, guidance_scale=SCALE, shift=SHIFT, num_frames=17
    )
    group = encoded(pipeline, np.stack([end] * 5))[:, :, 1:]  # the latent frame of four frames
    first = encoded(pipeline, start[1:])
    expected = by_hand(pipeline, drawn(5, 1, 16, 5, 8, 8), first=first, last=group)
    result = generate(pipeline, replace(request, normalize=True, seed=5, **given))
    assert far(result.latents, expected) < 1e-4


def test_an_image_of_another_size_covers_the_last_frame(pipeline: Pipeline) -> None:
    wide = np.concatenate([np.zeros((64, 32, 3), np.uint8), picture(1), picture(1)[:, :32]], axis=1)
    middle = wide[:, 32:96]
    request = replace(REQUEST, task="i2v", image=picture(0), num_steps=1)
    ends = [generate(pipeline, replace(request, last_frame=end)).latents for end in (wide, middle)]
    assert torch.equal(*ends)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"task": "t2v", "clip": picture(0, 9)}, "task t2v takes no clip to extend: leave it out"),
        ({"task": "t2i", "last_frame": picture()}, "task t2i takes no last frame"),
        ({"image": picture(), "clip": picture(0, 9)}, "an image is given beside the clip"),
        ({"last_frame": picture()}, "a last frame is given without a first one"),
        ({"clip": picture(0, 9), "height": 128}, "is 64x64 and 128x64 is asked for"),
        ({"clip": picture(0, 9)[:, :, :60]}, "the clip to extend: .* nearest that fit: 48 and 64"),
        ({"clip": picture(0, 9), "overlap": 9}, "9 frames are to be repeated and the clip has 9"),
        ({"clip": picture(0, 9), "overlap": 3}, "overlap: .* nearest that fit: 1 and 5"),
        ({"clip": picture(0, 19), "overlap": 9}, "9 frames leave nothing .* choose 13 or more"),
        (
            {"clip": picture(0, 9), "overlap": 5, "last_frame": picture()},
            "9 frames leave nothing to make between the first 5 frames and the last",
        ),
    ],
)
def test_frames_that_cannot_be_given_are_refused_before_any_work(
    pipeline: Pipeline, given: dict[str, object], words: str
) -> None:
    request = replace(REQUEST, **({"task": "i2v", "height": None, "width": None} | given))
    with pytest.raises(ValueError, match=words):
        generate(replace(pipeline, text_encoder=None), request)


def test_frames_for_a_model_that_takes_none(pipeline: Pipeline) -> None:
    request = replace(REQUEST, task="i2v", clip=picture(0, 9))
    with pytest.raises(ValueError, match="load a file for it such as kandinsky5lite_i2v"):
        generate(replace(pipeline, tasks=("t2v",), text_encoder=None), request)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"noise": drawn(0, 1, 16, 2, 8, 8)}, r"\(1, 16, 2, 8, 8\) and .* \(1, 16, 3, 8, 8\)"),
        (
            {"condition": VisualCondition(drawn(0, 1, 16, 1, 8, 9))},
            r"first_frame has shape \(1, 16, 1, 8, 9\) and the clip \(1, 16, 3, 8, 8\)",
        ),
        (
            {"condition": VisualCondition(last_frame=drawn(0, 1, 4, 1, 8, 8))},
            r"last_frame has shape \(1, 4, 1, 8, 8\)",
        ),
        (
            {"condition": VisualCondition(drawn(0, 1, 16, 3, 8, 8))},
            "3 latent frames are given and the clip has 3",
        ),
    ],
)
def test_parts_that_do_not_fit_are_refused_before_any_work(
    pipeline: Pipeline, given: dict[str, object], words: str
) -> None:
    with pytest.raises(ValueError, match=words):
        generate(replace(pipeline, text_encoder=None), REQUEST, **given)
