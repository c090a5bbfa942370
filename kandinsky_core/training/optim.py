"""Optimizers of the nano family and the learning-rate schedule.

Muon (Keller Jordan, 2024) moves a weight matrix along the orthogonalised momentum of its
gradient; everything that is not a hidden matrix goes to AdamW. torch.optim.Muon has the same rule
(`match_rms_adamw`), but refuses convolution kernels, iterates in bf16 alone, and every process of a
group would orthogonalise every matrix.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.optim import AdamW, Optimizer

from .distributed import SINGLE, Group

NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)
"""Coefficients of the quintic iteration: steepest at zero, singular values end in 0.7 .. 1.2."""


def orthogonalize(
    matrices: Tensor, *, num_steps: int = 5, dtype: torch.dtype = torch.float32
) -> Tensor:
    """Move every singular value of matrices (N, R, C) near 1 by Newton-Schulz iteration.

    The iteration runs in `dtype`, which is also the result's.
    """
    a, b, c = NEWTON_SCHULZ
    tall = matrices.shape[1] > matrices.shape[2]
    x = matrices.transpose(1, 2) if tall else matrices
    x = (x / x.norm(dim=(1, 2), keepdim=True).clamp(min=1e-7)).to(dtype)
    for _ in range(num_steps):
        gram = x @ x.transpose(1, 2)  # (N, R, R)
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.transpose(1, 2) if tall else x


class Muon(Optimizer):
    """Nesterov momentum, orthogonalised; convolution kernels count as (out, everything else).

    Args:
        params: Tensors of two or more axes.
        lr: Step length; an update has root mean square lr * 0.2 like AdamW's, whatever the shape.
        momentum: Of the gradient average.
        weight_decay: Decoupled.
        group: Processes that share the work; their gradients must be equal already.
        dtype: Of the iteration.
    """

    def __init__(
        self,
        params: Iterable[Tensor],
        lr: float,
        *,
        momentum: float = 0.95,
        weight_decay: float = 0.0,
        group: Group = SINGLE,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})
        self.group = group
        self.dtype = dtype

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:
        """Take one step; parameters without a gradient stay."""
        assert closure is None, "Muon takes no closure"
        for settings in self.param_groups:
            params = [param for param in settings["params"] if param.grad is not None]
            updates = [self._nesterov(param, settings["momentum"]) for param in params]
            self._orthogonalize_all(updates)
            for param, update in zip(params, updates, strict=True):
                param.mul_(1 - settings["lr"] * settings["weight_decay"])
                scale = 0.2 * max(update.shape) ** 0.5
                param.add_(update.view_as(param), alpha=-settings["lr"] * scale)

    def _nesterov(self, param: Tensor, momentum: float) -> Tensor:
        state = self.state[param]
        if not state:
            state["momentum"] = torch.zeros_like(param)
        state["momentum"].lerp_(param.grad, 1 - momentum)
        return param.grad.lerp(state["momentum"], momentum).flatten(1)

    def _orthogonalize_all(self, updates: list[Tensor]) -> None:
        """Orthogonalise in place; every process does its share and the sum tells the others."""
        by_shape: dict[torch.Size, list[Tensor]] = defaultdict(list)
        for update in updates:
            by_shape[update.shape].append(update)
        for same in by_shape.values():
            mine = same[self.group.rank :: self.group.size]
            results = orthogonalize(torch.stack(mine), dtype=self.dtype) if mine else ()
            for update in same:
                update.zero_()
            for update, result in zip(mine, results, strict=True):
                update.copy_(result)
        self.group.sum_(updates)


def make_optimizers(
    model: nn.Module,
    lr: float,
    *,
    outer_lr: float | None = None,
    weight_decay: float = 0.01,
    group: Group = SINGLE,
    dtype: torch.dtype = torch.float32,
) -> list[Optimizer]:
    """Give hidden matrices to Muon and the rest to AdamW.

    Hidden means: neither embedding, nor modulation, nor reader, nor first or last layer; those see
    sparse or rank-poor gradients, for which equal singular values are wrong.

    Args:
        model: What is trained; parameters without requires_grad stay as they are.
        lr: Of Muon.
        outer_lr: Of AdamW; None means `lr`, for updates of about the same size.
        weight_decay: Of the matrices.
        group: Processes that train together.
        dtype: In which Muon iterates.

    Returns:
        Muon and AdamW, without those that have nothing to train.
    """
    outer = ("embeddings", "modulation", "conv_in", "conv_out", "quant_conv", "reader")
    hidden, other = [], []
    trained = ((n, p) for n, p in model.named_parameters() if p.requires_grad)
    for name, param in trained:
        is_output = name.endswith("out_layer.out_layer.weight") and "block" not in name
        is_hidden = param.ndim >= 2 and not is_output and not any(part in name for part in outer)
        (hidden if is_hidden else other).append(param)
    optimizers: list[Optimizer] = []
    if hidden:
        optimizers.append(Muon(hidden, lr, weight_decay=weight_decay, group=group, dtype=dtype))
    if other:
        rate = outer_lr or lr
        optimizers.append(AdamW(other, rate, betas=(0.9, 0.95), weight_decay=0.0, fused=True))
    return optimizers


@dataclass(frozen=True)
class Schedule:
    """Linear warm-up, then constant, then a linear fall to `final`: factors of the base rate."""

    num_steps: int
    """Steps of the whole run."""
    warmup: int = 100
    """Steps of the rise."""
    decay: int = 0
    """Steps of the fall, at the end."""
    final: float = 0.0
    """Factor at the end of the fall."""

    def factor(self, step: int) -> float:
        """Return the factor of the learning rate at `step`, counted from 0."""
        rise = min(1.0, (step + 1) / max(1, self.warmup))
        left = (self.num_steps - step) / max(1, self.decay)
        return rise * (self.final + (1 - self.final) * min(1.0, max(0.0, left)))
