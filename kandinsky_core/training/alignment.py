"""Two auxiliary tasks of pretraining that give the networks something to hold on to.

Flow matching alone tells a token little about where in the picture it is: whether it should draw
the left point of a star or the background is a matter of what the other tokens do, and at high
noise that signal is weak. Following REPA (Yu et al., arXiv 2410.06940), the tokens of a middle
block are asked for features of the clean clip; here these are not another network's but the world's
own `layout`. The text encoder is asked what its caption says, as the large family's text encoders
knew before the transformer was trained. Both readers are dropped after training.

Letters: B batch, S tokens, D width, F entries of a token.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..models import CrossDiT
from ..models.layers import VisualBlock
from ..models.rope import frequencies
from .layout import LABELS, TOKEN_ENTRIES, TOKEN_SCALES, token_targets

DEPTH = 0.5
"""The block whose tokens are asked, as a share of all visual blocks."""
LAYOUT_WEIGHT, LABEL_WEIGHT = 1.0, 1.0
"""Of the two tasks beside the flow loss, at the start; both fall to nothing with the steps."""


class Readers(nn.Module):
    """Small heads that read the layout off visual tokens and the labels off pooled text."""

    def __init__(self, model_dim: int, pooled_dim: int) -> None:
        super().__init__()
        self.layout_reader = nn.Sequential(
            nn.LayerNorm(model_dim),
            nn.Linear(model_dim, model_dim),
            nn.GELU(),
            nn.Linear(model_dim, TOKEN_ENTRIES),
        )
        self.label_reader = nn.Linear(pooled_dim, len(LABELS))

    def layout_loss(self, tokens: Tensor, layout: Tensor, grid_hw: tuple[int, int]) -> Tensor:
        """Return squared error of the layout that tokens (B, S, D) tell, against (B, T, O, E).

        Each entry's error is relative to how much the entry varies.
        """
        error = self.layout_reader(tokens) - token_targets(layout, grid_hw)
        return (error / error.new_tensor(TOKEN_SCALES)).square().mean()

    def label_loss(self, pooled: Tensor, labels: Tensor) -> Tensor:
        """Return the cross entropy of the labels (B, len(LABELS)) told by pooled text (B, D)."""
        return F.binary_cross_entropy_with_logits(self.label_reader(pooled), labels)


@contextmanager
def middle_tokens(transformer: CrossDiT) -> Iterator[list[Tensor]]:
    """Collect the output (B, S, D) of the middle block, one entry for each forward pass."""
    blocks = transformer.visual_transformer_blocks
    seen: list[Tensor] = []
    block = blocks[min(int(DEPTH * len(blocks)), len(blocks) - 1)]
    handle = block.register_forward_hook(lambda _module, _inputs, output: seen.append(output))
    try:
        yield seen
    finally:
        handle.remove()


@torch.no_grad()
def start_as_neighbourhoods(transformer: CrossDiT, *, strength: float = 1.5) -> None:
    """Let all but one head of every visual self-attention start by looking at a fixed offset.

    The network knows positions only through rotary attention. Biases of query and key that differ
    by a rotation make a head prefer the key at one offset; random weights have none, and grow them
    slowly. Offsets of one and two tokens along each axis are dealt out in turn.

    Args:
        transformer: Fresh weights.
        strength: Size of the biases; random weights give queries a deviation of about 0.6.
    """
    config = transformer.config
    offsets = [
        tuple(sign * steps * (axis == a) for a in range(3))
        for axis, steps in ((2, 1), (1, 1), (0, 1), (2, 2), (1, 2), (0, 2))
        for sign in (1, -1)
    ]
    turn = 0
    for block in transformer.visual_transformer_blocks:
        assert isinstance(block, VisualBlock)
        attention = block.self_attention
        query = attention.to_query.bias.view(config.num_heads, -1, 2)  # (N, K/2, 2)
        key = attention.to_key.bias.view(config.num_heads, -1, 2)
        for head in range(config.num_heads - 1):
            angles = _pair_angles(config.axes_dims, offsets[turn % len(offsets)])
            sharp = angles.isfinite()
            query[head, sharp] = torch.tensor([strength, 0.0])
            direction = torch.stack([angles.cos(), -angles.sin()], dim=-1)
            key[head, sharp] = strength * direction[sharp]
            turn += 1


_SLOWEST = 0.09  # radians per token; slower pairs tell neighbours apart too little


def _pair_angles(axes_dims: tuple[int, int, int], offset: tuple[int, ...]) -> Tensor:
    """Return the angle by which each rotary pair turns over an offset; NaN for pairs too slow to
    matter."""
    angles = []
    for dim, steps in zip(axes_dims, offset, strict=True):
        rates = frequencies(dim // 2)
        angles.append(torch.where(rates > _SLOWEST, rates * steps, torch.nan))
    return torch.cat(angles)
