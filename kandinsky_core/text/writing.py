"""Writing text with a language model: how a token is chosen, and the loop through transformers.

Letters: V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from ..errors import import_extra
from ..seeds import check_seed
from .templates import STOP_TAGS

"""Tokens with which Qwen ends an answer."""
MAX_TEMPERATURE = 2.0


class CannotWriteError(ValueError):
    """A text encoder lacks what writing needs; the message says what, without a full stop."""


@dataclass(frozen=True)
class Written:
    """What a language model wrote."""

    text: str
    """The answer, without special tokens."""
    finished: bool
    """Whether the model ended it; False where the limit of tokens did."""

    @classmethod
    def from_ids(cls, ids: Sequence[int], tokenizer: Any) -> Written:
        """Read an answer's ids, the one that ended it included, with transformers' tokenizer."""
        stops = stop_ids(tokenizer)
        text = tokenizer.decode(list(ids), skip_special_tokens=True)
        return cls(text, finished=bool(ids) and ids[-1] in stops)


class TokenChooser:
    """Chooses tokens by temperature, the same ones for the same seed on every device.

    Raises:
        ValueError: if the temperature or the seed is out of its range.
    """

    def __init__(
        self, *, temperature: float, seed: int, on_token: Callable[[], object] | None = None
    ) -> None:
        """Take how to choose.

        Args:
            temperature: 0 takes the likeliest token, 1 draws as the model was trained, up to 2.
            seed: Of the draws, from 0 to `seeds.MOST_SEED`.
            on_token: Called after every choice; may raise to cancel.
        """
        if not 0 <= temperature <= MAX_TEMPERATURE:
            raise ValueError(
                f"temperature is {temperature}: expected a number from 0 (always the likeliest "
                f"word) to {MAX_TEMPERATURE:g}"
            )
        check_seed(seed)
        self.temperature = temperature
        self.on_token = on_token
        self._generator = torch.Generator().manual_seed(seed)

    def __call__(self, logits: Tensor) -> int:
        """Choose from logits (V,), on any device."""
        if self.temperature == 0:
            token = int(logits.argmax())
        else:
            weights = torch.softmax(logits.float().cpu() / self.temperature, dim=-1)
            token = int(torch.multinomial(weights, 1, generator=self._generator))
        if self.on_token is not None:
            self.on_token()
        return token


@runtime_checkable
class Writer(Protocol):
    """A text encoder that can also write."""

    def write(
        self, chat: str, image: Tensor | None, choose: TokenChooser, max_tokens: int
    ) -> Written:
        """Continue a chat.

        Args:
            chat: Ends where the answer begins; holds `IMAGE_TAGS` once if there is an image.
            image: (1, 3, H, W) uint8 with sides that are multiples of 28, or None.
            choose: How to choose tokens.
            max_tokens: Most tokens of the answer.

        Returns:
            The answer.

        Raises:
            CannotWriteError: if a part is missing.
        """
        ...


def stop_ids(tokenizer: Any) -> list[int]:
    """Return the ids of `STOP_TAGS` in a tokenizer of transformers."""
    return [tokenizer.convert_tokens_to_ids(tag) for tag in STOP_TAGS]


def write_with_transformers(
    model: Any,
    tokenizer: Any,
    inputs: dict[str, Tensor],
    choose: TokenChooser,
    max_tokens: int,
) -> Written:
    """Write with a model of transformers, through its own `generate`.

    Args:
        model: One with a language head.
        tokenizer: Its tokenizer.
        inputs: What its forward takes: input_ids (1, L) and what belongs to them.
        choose: How to choose tokens.
        max_tokens: Most tokens of the answer.

    Returns:
        The answer.
    """

    def keep_chosen(_ids: Tensor, logits: Tensor) -> Tensor:
        chosen = torch.full_like(logits, -torch.inf)
        chosen[0, choose(logits[0])] = 0
        return chosen

    stops = stop_ids(tokenizer)
    ids = model.generate(
        **inputs,
        # `generate` draws from the global random state, so the choice is made before it
        logits_processor=import_extra("transformers", "text").LogitsProcessorList([keep_chosen]),
        do_sample=False,
        max_new_tokens=max_tokens,
        eos_token_id=stops,
        pad_token_id=stops[-1],
    )
    return Written.from_ids(ids[0, inputs["input_ids"].shape[1] :].tolist(), tokenizer)
