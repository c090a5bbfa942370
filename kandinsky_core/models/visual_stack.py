"""The visual blocks of one call: tiling, loop and hooks.

Letters: B batch, S visual tokens, L text tokens, D model dim, K head dim.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

from torch import Tensor, nn

from ..attention import Attend, Nabla, Tiling

AroundBlocks = Callable[[Tensor, Callable[[Tensor], Tensor]], Tensor]
"""Stands around the visual blocks: takes their input (B, S, D) and the function that runs them,
and returns what should count as their output. See `caching/`."""
AroundBlock = Callable[[int, Tensor, Callable[[Tensor], Tensor]], Tensor]
"""Stands around each visual block: takes its number, its input (B, S, D) and the function that
runs it, and returns what should count as its output."""


class VisualStack:
    """Runs the visual blocks on tokens in raster order; it holds no weights of its own."""

    def __init__(
        self,
        blocks: nn.ModuleList,
        text: Tensor,
        time_embed: Tensor,
        rope: Tensor,
        text_mask: Tensor | None,
        attend: Attend,
        *,
        around_blocks: AroundBlocks | None = None,
        around_block: AroundBlock | None = None,
    ) -> None:
        """Attend densely.

        Args:
            blocks: The `VisualBlock` of every layer.
            text: Refined text (B, L, D).
            time_embed: Of time and pooled text, fp32 (B, time_dim).
            rope: Rotations of the tokens, complex64 (S, K / 2).
            text_mask: Boolean (B, L), True where a token is real; None if all are.
            attend: Attention backend.
            around_blocks: Decides whether the blocks run; None always runs them.
            around_block: The same for each of them.
        """
        self._blocks = blocks
        self._given = text, time_embed
        self._rope = rope
        self._text_mask = text_mask
        self._attend = attend
        self._around_blocks = around_blocks
        self._around_block = around_block
        self._tiling: Tiling | None = None
        self._self_attends: Sequence[Attend] = [attend] * len(blocks)

    def sparsify(self, nabla: Nabla, tiling: Tiling) -> None:
        """Attend sparsely among visual tokens, which then pass the blocks in tile order."""
        self._tiling = tiling
        self._rope = tiling.tile(self._rope[None])[0]
        layers = len(self._blocks)
        self._self_attends = nabla.layers(layers, self._attend, tiling, self._rope.device)

    @property
    def run(self) -> Callable[[Tensor], Tensor]:
        """What takes tokens (B, S, D) through the stack.

        A property, because a method would hold on to the input that is free after the first block.
        """
        return self._run_all if self._around_blocks is None else self._run_around

    def _run_around(self, visual: Tensor) -> Tensor:
        assert self._around_blocks is not None
        return self._around_blocks(visual, self._run_all)

    def _run_all(self, visual: Tensor) -> Tensor:
        if self._tiling is not None:
            visual = self._tiling.tile(visual)
        for index in range(len(self._blocks)):
            if self._around_block is None:
                visual = self._run_block(index, visual)
            else:
                visual = self._around_block(index, visual, partial(self._run_block, index))
        return visual if self._tiling is None else self._tiling.untile(visual)

    def _run_block(self, index: int, visual: Tensor) -> Tensor:
        return self._blocks[index](
            visual,
            *self._given,
            self._rope,
            self._text_mask,
            self._attend,
            self._self_attends[index],
        )
