"""What the transformer receives from a prompt, and what an encoder must offer to make it.

Letters: B batch, L text tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor
from torch.nn import functional

from ..family.settings import Task


@dataclass(frozen=True, eq=False)
class TextConditioning:
    """Encoded prompts, one a row, padded to a common length.

    Raises:
        ValueError: if the shapes do not belong together, or mask is not boolean.
    """

    tokens: Tensor
    """(B, L, D_text) float: one vector a token. Padding may hold anything finite."""
    mask: Tensor
    """(B, L) bool: True where a token is real, False where it is padding."""
    pooled: Tensor
    """(B, D_pool) float: one vector for the whole prompt."""

    def __post_init__(self) -> None:
        if self.tokens.ndim != 3:
            raise ValueError(
                "text tokens must have shape (batch, length, width), "
                f"got {tuple(self.tokens.shape)}"
            )
        if self.mask.dtype != torch.bool:
            raise ValueError(
                f"text mask must be boolean with True for real tokens, got {self.mask.dtype}"
            )
        if self.mask.shape != self.tokens.shape[:2]:
            raise ValueError(
                f"text mask must have shape {tuple(self.tokens.shape[:2])} like the tokens, "
                f"got {tuple(self.mask.shape)}"
            )
        if self.pooled.ndim != 2 or self.pooled.shape[0] != self.tokens.shape[0]:
            raise ValueError(
                f"pooled text must have shape ({self.tokens.shape[0]}, width) like the tokens' "
                f"batch, got {tuple(self.pooled.shape)}"
            )

    @property
    def batch_size(self) -> int:
        """Number of prompts B."""
        return self.tokens.shape[0]

    def to(
        self, device: torch.device | str | None = None, dtype: torch.dtype | None = None
    ) -> TextConditioning:
        """Move everything to `device` and the floating tensors to `dtype`; None keeps either."""
        return TextConditioning(
            self.tokens.to(device=device, dtype=dtype),
            self.mask.to(device=device),
            self.pooled.to(device=device, dtype=dtype),
        )

    def pad(self, length: int) -> TextConditioning:
        """Append masked zeros up to `length` tokens.

        Raises:
            ValueError: if there are more than `length` tokens already.
        """
        missing = length - self.tokens.shape[1]
        if missing < 0:
            raise ValueError(
                f"cannot pad text of {self.tokens.shape[1]} tokens to {length}; "
                "give a length that holds them all"
            )
        if missing == 0:
            return self
        return TextConditioning(
            functional.pad(self.tokens, (0, 0, 0, missing)),
            functional.pad(self.mask, (0, missing)),
            self.pooled,
        )

    def expand(self, batch: int) -> TextConditioning:
        """Repeat a single prompt `batch` times, without copying; a batch of that size is kept.

        Raises:
            ValueError: if there are several prompts and their number is not `batch`.
        """
        if self.batch_size == batch:
            return self
        if self.batch_size != 1:
            raise ValueError(
                f"text holds {self.batch_size} prompts, expected 1 or {batch}; "
                "give one prompt for all samples or one for each"
            )
        return TextConditioning(
            self.tokens.expand(batch, -1, -1),
            self.mask.expand(batch, -1),
            self.pooled.expand(batch, -1),
        )

    @classmethod
    def concat(cls, parts: Sequence[TextConditioning]) -> TextConditioning:
        """Join batches, padding each to the longest and masking what was added.

        Raises:
            ValueError: if `parts` is empty or their widths differ.
        """
        if not parts:
            raise ValueError("expected at least one text conditioning to concatenate, got none")
        widths = {(part.tokens.shape[2], part.pooled.shape[1]) for part in parts}
        if len(widths) > 1:
            raise ValueError(
                f"text conditionings have different (token, pooled) widths {sorted(widths)}; "
                "encode all prompts with the same text encoder"
            )
        length = max(part.tokens.shape[1] for part in parts)
        padded = [part.pad(length) for part in parts]
        return cls(
            torch.cat([part.tokens for part in padded]),
            torch.cat([part.mask for part in padded]),
            torch.cat([part.pooled for part in padded]),
        )


@runtime_checkable
class TextEncoder(Protocol):
    """Turns prompts into what a transformer of the family was trained with."""

    def encode(
        self, prompts: Sequence[str], *, task: Task = "t2v", images: Tensor | None = None
    ) -> TextConditioning:
        """Encode a batch of prompts, without gradients.

        Args:
            prompts: One string for each row; "" is a valid prompt.
            task: Chooses the template and the caps, where the encoder has any.
            images: (B, 3, H, W) float in [-1, 1], what each prompt talks about, for encoders that
                look at it.

        Returns:
            B rows, padded to the longest prompt.
        """
        ...
