"""The network as the sampler wants it: a function of x_t and t, guidance included."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from .attention import Attend, Nabla, attend
from .caching import BlockCache, Branch
from .flow import VisualCondition, guide
from .models import CrossDiT
from .text import TextConditioning


@dataclass(frozen=True)
class GuidedModel:
    """A transformer with everything but x_t and t filled in."""

    transformer: CrossDiT
    """The network that predicts the velocity."""
    positive: TextConditioning
    """Text that says what to make."""
    negative: TextConditioning | None = None
    """What to guide away from; not needed at scale 1."""
    scale: float = 1.0
    """Guidance scale; 1 runs the network once a step."""
    condition: VisualCondition = field(default_factory=VisualCondition)
    """First frame or source image."""
    rope_scale: tuple[float, float, float] = (1.0, 1.0, 1.0)
    """Divisor of the rotary angles (t, h, w)."""
    attend: Attend = attend
    """Backend of every attention of the network."""
    cache: BlockCache | None = None
    """Decides at each call whether the visual blocks run; None always runs them."""
    nabla: Nabla | None = None
    """Makes attention among visual tokens sparse; None leaves it dense."""
    unguided_from: float = 0.0
    """Time in [0, 1] from which on, towards 0, guidance is off."""

    def __post_init__(self) -> None:
        if self.scale != 1.0 and self.negative is None:
            raise ValueError(
                f"guidance at scale {self.scale} needs a negative prompt (it may be empty), "
                "got none; pass one or set the scale to 1"
            )

    def __call__(self, x_t: Tensor, t: Tensor) -> Tensor:
        """Predict the guided velocity.

        Args:
            x_t: Noisy latents (B, C, T, H, W), fp32.
            t: Time, a scalar tensor in [0, 1].

        Returns:
            Velocity (B, C, T, H, W), fp32.
        """
        cond = self._velocity(x_t, t, self.positive, "cond")
        if self.scale == 1.0 or self.negative is None or t <= self.unguided_from:
            return cond
        uncond = self._velocity(x_t, t, self.negative, "uncond")
        return guide(cond, uncond, self.scale)

    def _velocity(self, x_t: Tensor, t: Tensor, text: TextConditioning, branch: Branch) -> Tensor:
        batch = x_t.shape[0]
        stored = self.transformer.visual_embeddings.in_layer.weight.dtype
        dtype = torch.bfloat16 if stored.itemsize == 1 else stored  # fp8 only stores weights
        text = text.expand(batch).to(x_t.device)
        x = self.condition.network_input(x_t, self.transformer.config.visual_cond)
        velocity = self.transformer(
            x.to(dtype),
            t.to(x_t.device, torch.float32).expand(batch),
            text.tokens,
            text.pooled,
            None if text.mask.all() else text.mask,
            rope_scale=self.rope_scale,
            attend=self.attend,
            around_blocks=None if self.cache is None else self.cache.around(branch),
            nabla=self.nabla,
        )
        return velocity.float()
