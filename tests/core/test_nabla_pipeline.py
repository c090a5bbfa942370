"""Checkpoints whose settings say NABLA run with it, and say which sizes do not fit."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
import torch

from kandinsky_core.attention import Nabla, attend
from kandinsky_core.family.config import VideoVAEConfig
from kandinsky_core.family.settings import RELEASES, Release, SamplingSettings
from kandinsky_core.family.variants import VARIANTS
from kandinsky_core.generate import GenerateRequest, generate
from kandinsky_core.guided_model import GuidedModel
from kandinsky_core.models import CrossDiT, VideoVAE
from kandinsky_core.pipeline import Pipeline, nabla_for
from kandinsky_core.text import TextConditioning

SETTINGS = SamplingSettings(
    num_steps=2,
    guidance_scale=2.0,
    shift=3.0,
    rope_scale=(1.0, 1.0, 1.0),
    sizes=((64, 64),),
    num_frames=5,
    attention="nabla",
    nabla_p=0.3,
    sta_window_thw=(1, 1, 1),
    tile_thw=(1, 2, 2),
)
VAE = VideoVAEConfig(
    (8, 8, 8), 1, latent_channels=4, norm_num_groups=4, patch_size=4, mid_block_attention=False
)


class Text:
    def encode(self, prompts: Sequence[str], **_: object) -> TextConditioning:
        generator = torch.Generator().manual_seed(len(prompts[0]))
        return TextConditioning(
            torch.randn(1, 3, 24, generator=generator),
            torch.ones(1, 3, dtype=torch.bool),
            torch.randn(1, 12, generator=generator),
        )


class Watched:
    """The default backend, remembering the block maps it was given."""

    def __init__(self) -> None:
        self.maps = []

    def __call__(self, q, k, v, *, mask=None, block_map=None):
        self.maps.append(block_map)
        return attend(q, k, v, mask=mask, block_map=block_map)


@pytest.fixture
def pipeline() -> Pipeline:
    torch.manual_seed(0)
    transformer = CrossDiT(VARIANTS["debug"]).eval()
    for param in transformer.parameters():
        torch.nn.init.normal_(param, std=0.2)
    return Pipeline(transformer, Text(), VideoVAE(VAE).eval(), SETTINGS, attend=Watched())


def run(pipeline: Pipeline, **request: object) -> torch.Tensor:
    return generate(pipeline, GenerateRequest("a", **request)).latents


def test_settings_turn_nabla_on_for_visual_tokens_alone(pipeline):
    config = pipeline.transformer.config
    sparse = run(pipeline)
    maps = [block_map for block_map in pipeline.attend.maps if block_map is not None]
    calls = SETTINGS.num_steps * 2  # with and without the prompt
    assert len(maps) == calls * config.num_visual_blocks
    assert len(pipeline.attend.maps) == calls * (
        2 * config.num_visual_blocks + config.num_text_blocks
    )
    # 5 frames are 2 latent frames; 64 pixels are 8 cells, 4 tokens, 2 tiles
    assert {m.grid_thw for m in maps} == {(2, 2, 2)}
    assert all(m.density.mean() < 1 for m in maps)

    pipeline.attend.maps.clear()
    dense = run(pipeline, attention="dense")
    assert not any(pipeline.attend.maps)
    assert (sparse - dense).norm() / dense.norm() > 1e-4
    full = run(pipeline, nabla_p=1.0)
    assert (full - dense).abs().max() < 1e-4 * dense.std()


def test_size_that_does_not_divide_into_tiles_names_those_that_do(pipeline):
    with pytest.raises(ValueError, match=r"height 80 .*nearest that fit: 64 and 96") as error:
        run(pipeline, height=80, width=64)
    assert "\n" not in str(error.value)
    assert run(pipeline, height=80, width=64, attention="dense").shape[-2] == 10
    # the tile of a size class counts where only that class has one
    large = replace(SETTINGS, sizes=((128, 128),))
    both = replace(SETTINGS, attention="dense", larger=large)
    pipeline = replace(pipeline, settings=both)
    assert run(pipeline, height=80, width=64).shape[-2] == 10
    with pytest.raises(ValueError, match=r"width 144 .*nearest that fit: 128 and 160"):
        run(pipeline, height=128, width=144)


def test_size_of_an_image_is_chosen_to_fit_the_tiles(pipeline):
    picture = np.zeros((40, 100, 3), np.uint8)
    pipeline = replace(pipeline, settings=replace(SETTINGS, sizes=((64, 64), (32, 96))))
    sizes = {}
    for attention in ("nabla", "dense"):
        request = GenerateRequest("a", task="i2v", image=picture, attention=attention)
        sizes[attention] = generate(pipeline, request).shape.size
    # 64 x 64 pixels at 2:5 are 40.5 x 101.2: to multiples of 32 (tiles) and of 16 (patches)
    assert sizes == {"nabla": (32, 96), "dense": (48, 96)}


def test_batched_guidance_equals_single_runs(pipeline):
    transformer = pipeline.transformer
    positive, negative = Text().encode(["ab"]), Text().encode(["c"])
    x = torch.randn(3, 4, 2, 8, 8, generator=torch.Generator().manual_seed(4))
    t = torch.tensor(0.6)
    model = GuidedModel(transformer, positive, negative, 3.0, nabla=nabla_for(SETTINGS))
    with torch.no_grad():
        together = model(x, t)
        alone = torch.cat([model(row[None], t) for row in x])
        dense = GuidedModel(transformer, positive, negative, 3.0)(x, t)
    assert (together - alone).abs().max() < 1e-4 * alone.std()
    assert (together - dense).norm() / dense.norm() > 1e-3


def test_released_checkpoints_get_the_published_sparsity():
    lite = RELEASES[Release("video_lite", "t2v", 10, "sft")]
    assert nabla_for(lite) == Nabla(0.9, (1, 8, 8), (11, 3, 3))
    assert nabla_for(RELEASES[Release("video_lite", "t2v", 5, "sft")]) is None
    pro = RELEASES[Release("video_pro", "t2v", 5, "sft")]
    assert nabla_for(pro.for_size(512, 768)) is None
    assert nabla_for(pro.for_size(768, 1280)) == Nabla(0.8, (1, 8, 8), (11, 3, 3))
