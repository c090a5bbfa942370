"""The auxiliary tasks of pretraining: layouts of scenes, their readers, heads that look aside."""

from __future__ import annotations

import math

import pytest
import torch

from kandinsky_core.attention import attend_reference
from kandinsky_core.family.variants import VARIANTS
from kandinsky_core.models import CrossDiT
from kandinsky_core.models.rope import apply_rope, rope_3d
from kandinsky_core.training.alignment import middle_tokens, start_as_neighbourhoods
from kandinsky_core.training.attention import attend_products
from kandinsky_core.training.layout import (
    LABELS,
    TOKEN_ENTRIES,
    latent_times,
    scene_labels,
    scene_layout,
    token_targets,
)
from kandinsky_core.training.world import ObjectSpec, Scene

RED_STAR = ObjectSpec("star", "red", "medium", "right", x=-0.3, y=0.25, travel=0.6)
BLUE_CIRCLE = ObjectSpec("circle", "blue", "small", "still", x=0.5, y=-0.5)


def test_latent_times_are_the_middles_of_their_frames():
    # 17 frames in 5 latent frames: frame 0 alone, then 1-4, 5-8, 9-12, 13-16
    assert latent_times(17, 5) * 16 == pytest.approx([0, 2.5, 6.5, 10.5, 14.5])
    assert latent_times(1, 1).tolist() == [0.0]


def test_layout_follows_a_moving_object():
    layout = scene_layout(Scene("gray", objects=(RED_STAR,)), 17, 5)
    assert layout[:, 0, 0].tolist() == [1] * 5
    assert layout[:, 1:].abs().max() == 0
    expected = [-0.3 + 0.6 * frame / 16 for frame in (0, 2.5, 6.5, 10.5, 14.5)]
    assert layout[:, 0, 1].tolist() == pytest.approx(expected, abs=1e-6)
    assert layout[:, 0, 2].tolist() == pytest.approx([0.25] * 5)
    assert layout[:, 0, 6].tolist() == pytest.approx([0.6] * 5, abs=1e-5)  # speed along x
    assert layout[:, 0, 7].abs().max() < 1e-6


def test_an_image_does_not_move():
    layout = scene_layout(Scene("gray", "still", (RED_STAR,)), 1, 1)
    assert layout.shape[0] == 1
    assert layout[0, 0, 6:10].abs().max() == 0


def test_a_pan_moves_the_picture_the_other_way():
    still = ObjectSpec("square", "red", "small")
    layout = scene_layout(Scene("gray", "pan_right", (still,)), 17, 5)
    assert (layout[:, 0, 1].diff() < 0).all()


def test_tokens_know_the_nearest_object():
    layout = scene_layout(Scene("gray", objects=(RED_STAR, BLUE_CIRCLE)), 17, 5)
    targets = token_targets(layout[None], (8, 8))
    assert targets.shape == (1, 5 * 64, TOKEN_ENTRIES)
    first = targets[0, :64].view(8, 8, -1)
    row, column = 1, 6  # centre at (0.625, -0.625)
    assert first[row, column, 1:3].tolist() == pytest.approx([0.5 - 0.625, -0.5 + 0.625])
    star, circle = first[5, 2], first[row, column]
    assert star[0] == 1
    # its edge lies 0.24 - 0.177 beyond the centre of a token that is 0.25 wide
    assert circle[0].item() == pytest.approx(
        0.5 + (0.24 - math.hypot(0.125, 0.125)) / 0.25, abs=1e-5
    )
    assert first[7, 7, 0] == 0
    assert not torch.equal(star[10:], circle[10:])


def test_labels_name_what_is_there():
    labels = scene_labels(Scene("gray", objects=(RED_STAR, BLUE_CIRCLE)), image=False)
    named = {label for label, value in zip(LABELS, labels.tolist(), strict=True) if value}
    assert named == {
        ("shape", "star"), ("shape", "circle"), ("color", "red"), ("color", "blue"),
        ("motion", "right"), ("motion", "still"), ("size", "medium"), ("size", "small"),
        ("background", "gray"), ("camera", "still"),
    }  # fmt: skip
    image = scene_labels(Scene("gray", objects=(RED_STAR,)), image=True)
    named = {label[0] for label, value in zip(LABELS, image.tolist(), strict=True) if value}
    assert named == {"shape", "color", "size", "background"}


def test_middle_tokens_are_a_blocks_output():
    torch.manual_seed(0)
    config = VARIANTS["debug"]
    transformer = CrossDiT(config)
    x = torch.randn(1, config.input_channels, 1, 4, 4)
    text, pooled = torch.randn(1, 3, config.text_dim), torch.randn(1, config.pooled_dim)
    with middle_tokens(transformer) as seen:
        transformer(x, torch.ones(1), text, pooled)
    assert [tokens.shape for tokens in seen] == [(1, 4, config.model_dim)]
    transformer(x, torch.ones(1), text, pooled)
    assert len(seen) == 1


def test_heads_start_by_looking_at_one_offset():
    torch.manual_seed(0)
    config = VARIANTS["nano"]
    transformer = CrossDiT(config)
    start_as_neighbourhoods(transformer, strength=20.0)
    grid = (3, 7, 7)
    rope = rope_3d(grid, config.axes_dims, (1.0, 1.0, 1.0), torch.device("cpu"))
    offsets = []
    for block in transformer.visual_transformer_blocks:
        attention = block.self_attention
        tokens = torch.randn(1, math.prod(grid), config.model_dim)
        heads = (1, math.prod(grid), config.num_heads, config.head_dim)
        query = apply_rope(attention.query_norm(attention.to_query(tokens).view(heads)), rope)
        key = apply_rope(attention.key_norm(attention.to_key(tokens).view(heads)), rope)
        scores = torch.einsum("bsnk,blnk->nsl", query, key)
        middle = 1 * 49 + 3 * 7 + 3
        for head in range(config.num_heads - 1):
            at = int(scores[head, middle].argmax())
            place = (at // 49 - 1, at % 49 // 7 - 3, at % 7 - 3)
            offsets.append(place)
    # one and two tokens along each axis and both ways; the grid is one token deep in time
    assert {(0, 0, 1), (0, 0, -1), (0, 1, 0), (0, -1, 0), (1, 0, 0), (-1, 0, 0)} <= set(offsets)
    assert {(0, 0, 2), (0, 0, -2), (0, 2, 0), (0, -2, 0)} <= set(offsets)


def test_biases_of_query_and_key_differ_by_the_turn_of_an_offset():
    """The first head looks one token to the right: pairs of that axis turn by their rate."""
    config = VARIANTS["debug"]
    transformer = CrossDiT(config)
    start_as_neighbourhoods(transformer)
    attention = transformer.visual_transformer_blocks[0].self_attention
    query, key = (
        torch.view_as_complex(layer.bias.detach().view(config.num_heads, -1, 2)[0].contiguous())
        for layer in (attention.to_query, attention.to_key)
    )
    across = config.axes_dims[2] // 2  # pairs of the last axis
    rates = 10_000.0 ** (-torch.arange(across) / across)
    fast = rates > 0.09
    assert fast.sum() > 1
    torch.testing.assert_close(query[-across:][fast], torch.full((int(fast.sum()),), 1.5 + 0j))
    turned = 1.5 * torch.exp(-1j * rates[fast])
    torch.testing.assert_close(key[-across:][fast], turned.to(key.dtype))


@pytest.mark.parametrize("masked", [False, True])
def test_attention_as_products_equals_the_reference(masked):
    torch.manual_seed(0)
    q, k, v = (torch.randn(2, 3, length, 16, requires_grad=True) for length in (10, 7, 7))
    mask = torch.ones(2, 7, dtype=torch.bool)
    mask[1, 4:] = not masked
    results = []
    for attend in (attend_products, attend_reference):
        out = attend(q, k, v, mask=mask if masked else None)
        results.append((out, *torch.autograd.grad(out.square().sum(), (q, k, v))))
    for got, expected in zip(*results, strict=True):
        torch.testing.assert_close(got, expected, atol=1e-5, rtol=1e-5)
