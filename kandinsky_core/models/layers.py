"""Building blocks of CrossDiT.

Source: arXiv 2511.14993, section 3; kandinskylab/kandinsky-5. Attribute names are checkpoint keys.
Letters: B batch, C channels, T H W grid, S visual tokens, L text tokens, D model dim, N heads,
K head dim.

Precision: time embedding, modulation, norm-and-modulate and gating run in fp32, matrices in the
dtype of the activations.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F

from ..attention import Attend
from .ops import RMS_EPS, Ops
from .rope import apply_rope, frequencies

NORM_EPS = 1e-5


class ModulationParams(NamedTuple):
    """Shift and scale of one sub-layer's input and gate of its output, each (B, 1, D) fp32."""

    shift: Tensor
    scale: Tensor
    gate: Tensor


def norm_and_modulate(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """Normalise without affine, then x * (1 + scale) + shift, in fp32.

    Args:
        x: Tokens (B, S, D).
        shift: (B, 1, D) fp32.
        scale: (B, 1, D) fp32.

    Returns:
        Tokens (B, S, D), dtype of x.
    """
    normed = F.layer_norm(x.float(), x.shape[-1:], eps=NORM_EPS)
    return torch.addcmul(shift, normed, scale + 1.0).to(x.dtype)


def add_gated(x: Tensor, gate: Tensor, update: Tensor) -> Tensor:
    """Return x + gate * update, summed in fp32; x and update (B, S, D), gate (B, 1, D)."""
    if x.dtype == torch.float32:
        return torch.addcmul(x, gate, update)
    # the copy in fp32 is nobody else's, so the sum may take its place
    return x.float().addcmul_(gate, update.float()).to(x.dtype)


class TimeEmbeddings(nn.Module):
    """Sinusoid of 1000 t through a two-layer MLP, fp32."""

    def __init__(self, model_dim: int, time_dim: int, ops: Ops, **factory: object) -> None:
        super().__init__()
        self.model_dim = model_dim
        self.in_layer = ops.Linear(model_dim, time_dim, **factory)
        self.out_layer = ops.Linear(time_dim, time_dim, **factory)

    def forward(self, t: Tensor) -> Tensor:
        """Embed times t (B,) in [0, 1]; returns (B, D_time) fp32."""
        args = torch.outer(1000.0 * t.float(), frequencies(self.model_dim // 2, t.device))
        embed = torch.cat([args.cos(), args.sin()], dim=-1)  # (B, D)
        return self.out_layer(F.silu(self.in_layer(embed)))


class TextEmbeddings(nn.Module):
    """Linear projection and affine LayerNorm, for text tokens and for the pooled vector."""

    def __init__(self, text_dim: int, out_dim: int, ops: Ops, **factory: object) -> None:
        super().__init__()
        self.in_layer = ops.Linear(text_dim, out_dim, **factory)
        self.norm = ops.LayerNorm(out_dim, eps=NORM_EPS, **factory)

    def forward(self, text: Tensor) -> Tensor:
        """Project (..., D_text) to (..., D_out)."""
        return self.norm(self.in_layer(text))


class VisualEmbeddings(nn.Module):
    """Patches of latent cells to tokens."""

    def __init__(
        self,
        channels: int,
        model_dim: int,
        patch_thw: tuple[int, int, int],
        ops: Ops,
        **factory: object,
    ) -> None:
        super().__init__()
        self.patch_thw = patch_thw
        pt, ph, pw = patch_thw
        self.in_layer = ops.Linear(channels * pt * ph * pw, model_dim, **factory)

    def forward(self, x: Tensor) -> Tensor:
        """Embed (B, C, T, H, W) latents as raster-ordered tokens (B, S, D)."""
        pt, ph, pw = self.patch_thw
        patches = rearrange(
            x, "b c (t pt) (h ph) (w pw) -> b (t h w) (pt ph pw c)", pt=pt, ph=ph, pw=pw
        )
        return self.in_layer(patches)


class Modulation(nn.Module):
    """Time embedding to `count` vectors of the model's width; starts at zero."""

    def __init__(
        self, time_dim: int, model_dim: int, count: int, ops: Ops, **factory: object
    ) -> None:
        super().__init__()
        self.count = count
        self.out_layer = ops.Linear(time_dim, count * model_dim, **factory)
        nn.init.zeros_(self.out_layer.weight)
        nn.init.zeros_(self.out_layer.bias)

    def forward(self, time_embed: Tensor) -> tuple[Tensor, ...]:
        """Map (B, D_time) fp32 to `count` tensors (B, 1, D) fp32."""
        return self.out_layer(F.silu(time_embed))[:, None].chunk(self.count, dim=-1)

    def triples(self, time_embed: Tensor) -> list[ModulationParams]:
        """Group the vectors as (shift, scale, gate), one group per sub-layer."""
        params = self(time_embed)
        return [ModulationParams(*params[i : i + 3]) for i in range(0, self.count, 3)]


class Attention(nn.Module):
    """Multi-head attention with per-head RMSNorm of queries and keys; self or cross."""

    def __init__(self, model_dim: int, head_dim: int, ops: Ops, **factory: object) -> None:
        super().__init__()
        self.num_heads = model_dim // head_dim
        self.to_query = ops.Linear(model_dim, model_dim, **factory)
        self.to_key = ops.Linear(model_dim, model_dim, **factory)
        self.to_value = ops.Linear(model_dim, model_dim, **factory)
        self.query_norm = ops.RMSNorm(head_dim, eps=RMS_EPS, **factory)
        self.key_norm = ops.RMSNorm(head_dim, eps=RMS_EPS, **factory)
        self.out_layer = ops.Linear(model_dim, model_dim, **factory)

    def forward(
        self,
        x: Tensor,
        context: Tensor | None = None,
        *,
        attend: Attend,
        rope: Tensor | None = None,
        mask: Tensor | None = None,
    ) -> Tensor:
        """Attend from x to context, or to x itself.

        Args:
            x: Tokens (B, S, D).
            context: Tokens (B, L, D) to attend to; None means x.
            attend: The attention backend.
            rope: Complex rotations (S, K/2) of queries and keys; None for cross-attention.
            mask: Boolean (B, L), True where a key is real; None admits all.

        Returns:
            Tokens (B, S, D).
        """
        source = x if context is None else context
        # one after the other, so that no more than one is there twice
        query = self._heads(self.to_query(x), self.query_norm, rope)  # (B, S, N, K)
        key = self._heads(self.to_key(source), self.key_norm, rope)  # (B, L, N, K)
        value = self.to_value(source).unflatten(-1, (self.num_heads, -1))  # (B, L, N, K)
        out = attend(query.transpose(1, 2), key.transpose(1, 2), value.transpose(1, 2), mask=mask)
        return self.out_layer(out.transpose(1, 2).flatten(2))  # (B, S, D)

    def _heads(self, x: Tensor, norm: nn.Module, rope: Tensor | None) -> Tensor:
        heads = x.unflatten(-1, (self.num_heads, -1))
        heads = norm(heads.float()).to(x.dtype)
        return heads if rope is None else apply_rope(heads, rope)


class FeedForward(nn.Module):
    """Two bias-free layers around a GELU."""

    def __init__(self, model_dim: int, ff_dim: int, ops: Ops, **factory: object) -> None:
        super().__init__()
        self.in_layer = ops.Linear(model_dim, ff_dim, bias=False, **factory)
        self.out_layer = ops.Linear(ff_dim, model_dim, bias=False, **factory)

    def forward(self, x: Tensor) -> Tensor:
        """Map tokens (B, S, D) to (B, S, D)."""
        hidden = self.in_layer(x)  # (B, S, D_ff), the largest tensor of a block
        # a gradient needs it as it was; nobody else should pay for a second one
        hidden = F.gelu(hidden) if torch.is_grad_enabled() else torch.ops.aten.gelu_(hidden)
        return self.out_layer(hidden)


class TextBlock(nn.Module):
    """Block of the text refiner: self-attention, feed-forward."""

    def __init__(
        self, model_dim: int, time_dim: int, ff_dim: int, head_dim: int, ops: Ops, **factory: object
    ) -> None:
        super().__init__()
        self.text_modulation = Modulation(time_dim, model_dim, 6, ops, **factory)
        self.self_attention = Attention(model_dim, head_dim, ops, **factory)
        self.feed_forward = FeedForward(model_dim, ff_dim, ops, **factory)

    def forward(
        self, text: Tensor, time_embed: Tensor, rope: Tensor, mask: Tensor | None, attend: Attend
    ) -> Tensor:
        """Refine text tokens (B, L, D); rope (L, K/2), mask (B, L) or None."""
        attention, feed_forward = self.text_modulation.triples(time_embed)
        x = norm_and_modulate(text, attention.shift, attention.scale)
        x = self.self_attention(x, attend=attend, rope=rope, mask=mask)
        text = add_gated(text, attention.gate, x)

        x = norm_and_modulate(text, feed_forward.shift, feed_forward.scale)
        return add_gated(text, feed_forward.gate, self.feed_forward(x))


class VisualBlock(nn.Module):
    """Block of the visual stream: self-attention, cross-attention to the text, feed-forward."""

    def __init__(
        self, model_dim: int, time_dim: int, ff_dim: int, head_dim: int, ops: Ops, **factory: object
    ) -> None:
        super().__init__()
        self.visual_modulation = Modulation(time_dim, model_dim, 9, ops, **factory)
        self.self_attention = Attention(model_dim, head_dim, ops, **factory)
        self.cross_attention = Attention(model_dim, head_dim, ops, **factory)
        self.feed_forward = FeedForward(model_dim, ff_dim, ops, **factory)

    def forward(
        self,
        visual: Tensor,
        text: Tensor,
        time_embed: Tensor,
        rope: Tensor,
        text_mask: Tensor | None,
        attend: Attend,
        self_attend: Attend,
    ) -> Tensor:
        """Update visual tokens (B, S, D) from text (B, L, D); rope (S, K/2).

        `self_attend` computes attention among visual tokens, `attend` that to the text.
        """
        self_attention, cross_attention, feed_forward = self.visual_modulation.triples(time_embed)
        x = norm_and_modulate(visual, self_attention.shift, self_attention.scale)
        x = self.self_attention(x, attend=self_attend, rope=rope)
        visual = add_gated(visual, self_attention.gate, x)

        x = norm_and_modulate(visual, cross_attention.shift, cross_attention.scale)
        x = self.cross_attention(x, text, attend=attend, mask=text_mask)
        visual = add_gated(visual, cross_attention.gate, x)

        x = norm_and_modulate(visual, feed_forward.shift, feed_forward.scale)
        return add_gated(visual, feed_forward.gate, self.feed_forward(x))


class OutLayer(nn.Module):
    """Tokens to patches of velocity."""

    def __init__(
        self,
        model_dim: int,
        time_dim: int,
        channels: int,
        patch_thw: tuple[int, int, int],
        ops: Ops,
        **factory: object,
    ) -> None:
        super().__init__()
        self.patch_thw = patch_thw
        pt, ph, pw = patch_thw
        self.modulation = Modulation(time_dim, model_dim, 2, ops, **factory)
        self.out_layer = ops.Linear(model_dim, channels * pt * ph * pw, **factory)

    def forward(self, visual: Tensor, time_embed: Tensor, grid_thw: tuple[int, int, int]) -> Tensor:
        """Project raster-ordered tokens (B, S, D) to (B, C, T, H, W)."""
        shift, scale = self.modulation(time_embed)
        patches = self.out_layer(norm_and_modulate(visual, shift, scale))
        (t, h, w), (pt, ph, pw) = grid_thw, self.patch_thw
        return rearrange(
            patches,
            "b (t h w) (c pt ph pw) -> b c (t pt) (h ph) (w pw)",
            t=t, h=h, w=w, pt=pt, ph=ph, pw=pw,
        )  # fmt: skip
