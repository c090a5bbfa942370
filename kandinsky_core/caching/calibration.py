"""Measuring the ratios that MagCache needs, on one run of a checkpoint in full.

The ratio of a step is that of its residual's norm to the norm one step before, token by token,
averaged over tokens. Source: arXiv 2506.09045 and its repository, Zehong-Ma/MagCache.

Differs: norms are kept in place of residuals, and taken in fp32.
Letters: B batch, S visual tokens, D model dim.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from ..models import AroundBlocks
from .magcache import BRANCHES, Branch, check_branches, split
from .ratios import LARGEST_RATIO, MagRatios

DIGITS = 5
"""Decimals kept, as in the published tables."""


class Calibration:
    """Watches a run in full, then says its ratios."""

    def __init__(self) -> None:
        """Prepare; `begin` starts a run."""
        self._num_steps = 0
        self._calls: Counter[Branch] = Counter()
        self._ratios: dict[Branch, list[float]] = {}
        self._norms: dict[Branch, Tensor] = {}

    def begin(self, num_steps: int) -> None:
        """Start a run of `num_steps` steps; forget the last one.

        Raises:
            ValueError: If there are fewer than two steps to compare.
        """
        if num_steps < 2:
            raise ValueError(f"a calibration compares steps and needs at least 2, got {num_steps}")
        self._num_steps = num_steps
        self._calls.clear()
        self._ratios = {}
        self._norms = {}

    def around(self, *branches: Branch) -> AroundBlocks:
        """Return what stands around the visual blocks at the next call; see `BlockCache`."""
        check_branches(branches, self._num_steps)
        return partial(self._call, branches)

    def end(self) -> None:
        """Let go of the norms; what was measured stays."""
        self._norms = {}

    def ratios(self, source: str) -> MagRatios:
        """Return what was measured.

        Args:
            source: What it was measured on, for messages.

        Returns:
            Ratios of both branches, or of the conditional one if the run had no guidance.

        Raises:
            ValueError: The run is not over, or its numbers are of no use.
        """
        for branch in self._calls or ("cond",):
            done = self._calls[branch]
            if done != self._num_steps or not done:
                raise ValueError(
                    f"the calibration has seen {done} of {self._num_steps} steps of {branch}; let "
                    "the run finish, with one call of the network per step and branch"
                )
        cond, uncond = (self._ratios.get(branch) for branch in BRANCHES)
        assert cond is not None, "the network runs with the prompt at every step"
        for ratio in (*cond, *(uncond or ())):
            if not 0 < ratio < LARGEST_RATIO:
                raise ValueError(
                    f"the ratios of {source} cannot be measured, one of them is {ratio}: the "
                    "visual blocks change nothing, or overflow; use trained weights, in bf16 or "
                    "fp32"
                )
        return MagRatios(tuple(cond), None if uncond is None else tuple(uncond), source)

    def _call(
        self, branches: tuple[Branch, ...], visual: Tensor, run: Callable[[Tensor], Tensor]
    ) -> Tensor:
        """Run the blocks on (B, S, D) and note the norms of what they add."""
        output = run(visual)
        norms = torch.linalg.vector_norm(output - visual, dim=-1, dtype=torch.float32)  # (B, S)
        for branch, now in zip(branches, split(norms, len(branches)), strict=True):
            self._calls[branch] += 1
            ratios = self._ratios.setdefault(branch, [])
            if branch in self._norms:
                ratio = (now / self._norms[branch]).mean().item()
                ratios.append(round(ratio, DIGITS))
            self._norms[branch] = now
        return output
