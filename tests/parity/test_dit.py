"""CrossDiT against diffusers' Kandinsky5Transformer3DModel with shared random weights."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from diffusers import Kandinsky5Transformer3DModel

from kandinsky_core.attention import attend_reference
from kandinsky_core.family.config import DiTConfig
from kandinsky_core.family.variants import VARIANTS
from kandinsky_core.models import CrossDiT

MakePair = Callable[[DiTConfig], tuple[CrossDiT, Kandinsky5Transformer3DModel]]
RELEASED = ("video_lite", "video_pro", "image_lite", "image_edit")


def inputs(
    config: DiTConfig, batch: int, latent_thw: tuple[int, int, int], text_len: int
) -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(1)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator)

    return (
        normal(batch, config.input_channels, *latent_thw),
        torch.rand(batch, generator=generator),
        normal(batch, text_len, config.text_dim),
        normal(batch, config.pooled_dim),
    )


def visual_input(config: DiTConfig, kind: str, x: torch.Tensor) -> torch.Tensor:
    """Fill the condition channels of x as each kind of model gets them."""
    channels = config.latent_channels
    if kind != "text_to_image":
        x = x.clone()
        x[:, -1] = {"text_to_video": 0.0, "edit": 1.0, "image_to_video": 0.0}[kind]
        if kind != "edit":
            x[:, channels : 2 * channels] = 0.0
        if kind == "image_to_video":
            x[:, -1, 0] = 1.0
    return x


@pytest.mark.parametrize("kind", ["text_to_video", "image_to_video", "text_to_image", "edit"])
@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.usefixtures("keep_fp32_rotation")
@torch.no_grad()
def test_velocity_equals_diffusers(
    kind: str, batch: int, make_pair: MakePair, run_upstream: Callable[..., torch.Tensor]
) -> None:
    config = replace(VARIANTS["debug"], visual_cond=kind != "text_to_image")
    ours, theirs = make_pair(config)
    latent_thw = (1, 10, 6) if kind in ("text_to_image", "edit") else (3, 6, 10)
    x, t, tokens, pooled = inputs(config, batch, latent_thw, text_len=7)
    x = visual_input(config, kind, x)
    scale = (1.0, 2.0, 3.16)

    expected = run_upstream(theirs, x, t, tokens, pooled, rope_scale=scale)
    actual = ours(x, t, tokens, pooled, rope_scale=scale)

    assert expected.std() > 0.3
    assert (actual - expected).abs().max() / expected.std() < 1e-5


@torch.no_grad()
def test_velocity_close_to_untouched_diffusers(
    make_pair: MakePair, run_upstream: Callable[..., torch.Tensor]
) -> None:
    config = VARIANTS["debug"]
    ours, theirs = make_pair(config)
    x, t, tokens, pooled = inputs(config, 2, (3, 6, 10), text_len=7)
    expected = run_upstream(theirs, x, t, tokens, pooled)
    actual = ours(x, t, tokens, pooled)
    error = (actual - expected).abs().max() / expected.std()
    assert 1e-6 < error < 2e-3


@torch.no_grad()
def test_padded_text_and_batches_equal_single_runs(make_pair: MakePair) -> None:
    config = VARIANTS["debug"]
    ours, _ = make_pair(config)
    x, t, tokens, pooled = inputs(config, 3, (2, 4, 6), text_len=9)
    lengths = (9, 4, 1)
    mask = torch.arange(9) < torch.tensor(lengths)[:, None]

    together = ours(x, t, tokens, pooled, mask)

    for i, length in enumerate(lengths):
        row = slice(i, i + 1)
        alone = ours(x[row], t[row], tokens[row, :length], pooled[row])
        assert (together[row] - alone).abs().max() < 1e-5 * alone.std().clamp_min(1)


@torch.no_grad()
def test_fused_attention_equals_the_reference_attention(make_pair: MakePair) -> None:
    config = VARIANTS["debug"]
    ours, _ = make_pair(config)
    x, t, tokens, pooled = inputs(config, 2, (2, 4, 6), text_len=5)
    mask = torch.tensor([[True] * 5, [True, True, False, False, False]])
    fused = ours(x, t, tokens, pooled, mask)
    plain = ours(x, t, tokens, pooled, mask, attend=attend_reference)
    assert (fused - plain).abs().max() < 1e-5 * plain.std().clamp_min(1)


@torch.no_grad()
def test_bf16_run_is_close_to_fp32(make_pair: MakePair) -> None:
    config = VARIANTS["debug"]
    ours, _ = make_pair(config)
    x, t, tokens, pooled = inputs(config, 1, (2, 4, 6), text_len=5)
    exact = ours(x, t, tokens, pooled)
    rounded = ours.to(torch.bfloat16)(x.bfloat16(), t, tokens.bfloat16(), pooled)
    assert rounded.dtype == torch.bfloat16
    assert (rounded.float() - exact).norm() / exact.norm() < 2e-2


@pytest.mark.parametrize("name", RELEASED)
def test_every_released_size_has_diffusers_keys_and_shapes(
    name: str, upstream_model: Callable[[DiTConfig], torch.nn.Module]
) -> None:
    config = VARIANTS[name]
    ours = CrossDiT(config, device="meta").state_dict()
    with torch.device("meta"):
        theirs = upstream_model(config).state_dict()
    assert {k: v.shape for k, v in ours.items()} == {k: v.shape for k, v in theirs.items()}


@pytest.mark.parametrize(
    ("name", "billions", "keys"),
    [
        ("video_lite", 2.01, 814),
        ("video_pro", 19.31, 1514),
        ("image_lite", 6.02, 1246),
        ("image_edit", 6.02, 1246),
    ],
)
def test_parameter_counts_are_the_published_ones(name: str, billions: float, keys: int) -> None:
    state = CrossDiT(VARIANTS[name], device="meta").state_dict()
    assert len(state) == keys
    assert sum(v.numel() for v in state.values()) / 1e9 == pytest.approx(billions, abs=0.005)
