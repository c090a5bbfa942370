"""MagCache: steps that would change little reuse what the visual blocks did at the step before.

The visual blocks turn their input into input + residual. From one step to the next the residual's
magnitude changes by a ratio that hardly depends on the prompt, so it is measured once per
checkpoint. While the product of the ratios stays near 1, the last residual is a good stand-in.
Source: arXiv 2506.09045; kandinskylab/kandinsky-5, `magcache_utils.py`.

Differs: without a residual to reuse (the first step, where few steps leave no share of the run
to retain) the blocks run; the reference fails there.
Letters: B batch, S visual tokens, D model dim.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Literal, NamedTuple, Protocol

import torch
from torch import Tensor

from ..models import AroundBlocks
from .ratios import MagRatios

Branch = Literal["cond", "uncond"]
"""With the prompt, or with the negative prompt."""
BRANCHES: tuple[Branch, ...] = ("cond", "uncond")

THRESHOLD = 0.12
"""Accumulated error from which the blocks run, in the reference."""
MAX_SKIPS = 2
"""Steps that may be skipped in a row, in the reference."""
RETENTION = 0.2
"""First share of the steps that is never skipped, in the reference."""


class BlockCache(Protocol):
    """What watches the visual blocks over a run: MagCache, or its calibration."""

    def begin(self, num_steps: int) -> None:
        """Start a run of `num_steps` steps, each with one call per branch; forget the last run."""
        ...

    def around(self, *branches: Branch) -> AroundBlocks:
        """Return what stands around the visual blocks at the network's next call.

        Args:
            *branches: What the call computes, in the order of its batch, which is divided among
                them evenly; each once.

        Returns:
            For `CrossDiT.forward`; good for one call.
        """
        ...

    def end(self) -> None:
        """Let go of the tensors of a run, finished or not; what was counted stays."""
        ...


class Counts(NamedTuple):
    """How often one branch was called, and how often its blocks did not run."""

    skipped: int
    calls: int


@dataclass
class _Track:
    """What is known of one branch during a run."""

    ratios: list[float] | None
    """Ratio of each step to the one before it; None if nobody measured them."""
    calls: int = 0
    skipped: int = 0
    product: float = 1.0
    """Of the ratios since the blocks ran."""
    error: float = 0.0
    """Sum of |1 - product| since the blocks ran."""
    in_a_row: int = 0
    residual: Tensor | None = None
    """What the blocks added when they ran last (B, S, D)."""


class MagCache:
    """Reuses the visual blocks' residual where the ratios promise a small error.

    After `end` it holds no tensors. Calls beyond the number of steps run in full.
    """

    def __init__(
        self,
        ratios: MagRatios,
        *,
        threshold: float = THRESHOLD,
        max_skips: int = MAX_SKIPS,
        retention: float = RETENTION,
    ) -> None:
        """Prepare; `begin` starts a run.

        Args:
            ratios: Of the checkpoint that will run.
            threshold: Accumulated error from which the blocks run; 0 never skips.
            max_skips: Steps that may be skipped in a row.
            retention: First share of the steps that is never skipped, in [0, 1].

        Raises:
            ValueError: If a number is out of its range.
        """
        if not 0 <= threshold < math.inf:
            raise ValueError(
                f"the MagCache threshold is {threshold}: give a number from 0 (never skip) up; "
                f"the reference uses {THRESHOLD}"
            )
        if max_skips < 0:
            raise ValueError(f"max_skips is {max_skips}: give 0 or more")
        if not 0 <= retention <= 1:
            raise ValueError(f"retention is {retention}: give a share from 0 to 1")
        self.ratios = ratios
        self.threshold = threshold
        self.max_skips = max_skips
        self.retention = retention
        self._num_steps = 0
        self._tracks: dict[Branch, _Track] = {}

    def begin(self, num_steps: int) -> None:
        """Start a run of `num_steps` steps; forget the last one."""
        self._num_steps = num_steps
        self._tracks = {
            branch: _Track(self.ratios.for_steps(branch, num_steps)) for branch in BRANCHES
        }

    def around(self, *branches: Branch) -> AroundBlocks:
        """Return what stands around the visual blocks at the next call; see `BlockCache`."""
        check_branches(branches, self._num_steps)
        return partial(self._call, branches)

    def end(self) -> None:
        """Let go of the residuals; the counts stay."""
        for track in self._tracks.values():
            track.residual = None

    @property
    def counts(self) -> dict[Branch, Counts]:
        """Skips and calls of this run, per branch that was called."""
        return {
            branch: Counts(track.skipped, track.calls)
            for branch, track in self._tracks.items()
            if track.calls
        }

    def summary(self) -> str:
        """Return one line on what was skipped, and by whose ratios."""
        counts = self.counts
        skipped = sum(each.skipped for each in counts.values())
        calls = sum(each.calls for each in counts.values())
        names = {"cond": "prompt", "uncond": "negative prompt"}
        parts = ", ".join(f"{names[b]} {c.skipped} of {c.calls}" for b, c in counts.items())
        line = f"MagCache at threshold {self.threshold:g}: {skipped} of {calls} runs of the blocks"
        line += f" skipped ({parts}), by the ratios of {self.ratios.source}"
        if "uncond" in counts and self.ratios.uncond is None:
            line += ", which has none for the negative prompt"
        return line

    def _call(
        self, branches: tuple[Branch, ...], visual: Tensor, run: Callable[[Tensor], Tensor]
    ) -> Tensor:
        """Return the output of the blocks (B, S, D) for their input (B, S, D), run or made up."""
        inputs = split(visual, len(branches))
        tracks = [self._tracks[branch] for branch in branches]
        skips = [
            self._may_skip(branch, part) for branch, part in zip(branches, inputs, strict=True)
        ]
        # the blocks take the whole batch: where one branch needs them they run for all
        computed = inputs if all(skips) else split(run(visual), len(branches))
        outputs: list[Tensor] = []
        for track, skip, before, after in zip(tracks, skips, inputs, computed, strict=True):
            if skip:
                assert track.residual is not None, "only a residual lets a step be skipped"
                after = before + track.residual
                track.skipped += 1
            else:
                track.residual = after - before
            track.calls += 1
            if track.calls >= self._num_steps:
                track.residual = None
            outputs.append(after)
        return outputs[0] if len(outputs) == 1 else torch.cat(outputs)

    def _may_skip(self, branch: Branch, visual: Tensor) -> bool:
        """Judge the next step of a branch, and account for it."""
        track = self._tracks[branch]
        if track.ratios is None or track.calls >= self._num_steps:
            return False
        # the reference counts calls, the unconditional one after the conditional one
        position = 2 * track.calls + BRANCHES.index(branch)
        if position < int(2 * self._num_steps * self.retention):
            return False
        track.product *= track.ratios[track.calls]
        track.error += abs(1 - track.product)
        track.in_a_row += 1
        if (
            track.error < self.threshold
            and track.in_a_row <= self.max_skips
            and track.residual is not None
            and track.residual.shape == visual.shape
        ):
            return True
        track.product, track.error, track.in_a_row = 1.0, 0.0, 0
        return False


def check_branches(branches: tuple[Branch, ...], num_steps: int) -> None:
    """Refuse calls outside a run, and branches that one call cannot hold."""
    if not num_steps:
        raise ValueError("no run was begun: call begin(num_steps) before the first step")
    if not branches or len(set(branches)) != len(branches) or not set(branches) <= set(BRANCHES):
        raise ValueError(f"branches are {branches}: give each of {BRANCHES} at most once")


def split(visual: Tensor, num_parts: int) -> tuple[Tensor, ...]:
    """Divide (B, S, D) evenly along the batch."""
    if visual.shape[0] % num_parts:
        raise ValueError(
            f"a batch of {visual.shape[0]} does not divide into {num_parts} branches; "
            "make one call per branch"
        )
    return visual.chunk(num_parts)
