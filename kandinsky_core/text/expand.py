"""Prompt expansion: a short request becomes the detailed text that the models were trained on.

Qwen2.5-VL, which encodes the prompts anyway, writes it from an instruction for the task
(instructions.json) and, where a picture is the start, from that picture. Whatever goes wrong, the
answer is the original prompt and a sentence that says why.

Differs: the instructions are this project's own and hold no examples; the reference's do.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Literal, get_args

from torch import Tensor

from .expand_guard import count_words, review
from .protocol import Task
from .templates import END_TAG, IMAGE_TAGS, START_TAG, refuse_tags
from .vision import fit_for_qwen
from .writing import CannotWriteError, TokenChooser, Writer

Language = Literal["English", "as written"]
LANGUAGES: tuple[Language, ...] = get_args(Language)
"""What the expansion is written in: English, or the language of the prompt."""

EXPANSION_TOKENS = 256
"""Most tokens that are written unless asked otherwise; videos read no more."""
EXPANSION_TEMPERATURE = 0.7
LOOKING_TASKS: tuple[Task, ...] = ("i2v", "i2i")
"""Tasks whose picture is looked at."""
MAX_LOOK_PIXELS = 512 * 512
"""Area in which the picture is looked at: 334 tokens at most, enough to name what is in it."""

_UNCHANGED = "the prompt was passed on unchanged."


@dataclass(frozen=True)
class Expansion:
    """The prompt to go on with."""

    prompt: str
    """The expanded prompt, or the original one."""
    note: str
    """One sentence: what was done, or why nothing was."""
    expanded: bool
    """Whether `prompt` is another one."""


def expand_prompt(
    writer: object,
    prompt: str,
    *,
    task: Task = "t2v",
    image: Tensor | None = None,
    language: Language = "English",
    seed: int = 0,
    max_tokens: int = EXPANSION_TOKENS,
    temperature: float = EXPANSION_TEMPERATURE,
    on_token: Callable[[], object] | None = None,
) -> Expansion:
    """Have a text encoder write a prompt out.

    Args:
        writer: A `Writer`; with an encoder that is none, the prompt comes back unchanged.
        prompt: The request, in any language.
        task: Chooses the instruction.
        image: (B, 3, H, W) float in [-1, 1]; for "i2v" and "i2i" the first is looked at.
        language: Of the expansion.
        seed: Of the draws, from 0 to `seeds.MOST_SEED`.
        max_tokens: Most tokens that are written.
        temperature: 0 takes the likeliest word each time, up to 2 is more varied.
        on_token: Called after every token; may raise to cancel.

    Returns:
        The expansion; the original prompt where the encoder cannot write or wrote nonsense.

    Raises:
        ValueError: if the prompt holds one of Qwen's special tokens, or a number is out of range.
    """
    if not max_tokens >= 1:
        raise ValueError(f"max_tokens is {max_tokens}: expected 1 or more")
    choose = TokenChooser(temperature=temperature, seed=seed, on_token=on_token)
    seen = None
    if image is not None and task in LOOKING_TASKS:
        seen = fit_for_qwen(image[:1], MAX_LOOK_PIXELS)
    instruction = expansion_instruction(task, language, max_tokens, with_image=seen is not None)
    chat = expansion_chat(prompt, instruction, with_image=seen is not None)
    if not isinstance(writer, Writer):
        return Expansion(
            prompt,
            "This text encoder cannot write (it is nano's, or Qwen2.5-VL as another loader loads "
            f"it): {_UNCHANGED}",
            expanded=False,
        )
    try:
        written = writer.write(chat, seen, choose, max_tokens)
    except CannotWriteError as error:
        return Expansion(prompt, f"{error}: {_UNCHANGED}", expanded=False)
    result = review(written, prompt=prompt, instruction=instruction)
    if result.problem is not None:
        return Expansion(
            prompt,
            f"The expansion was thrown away because {result.problem}: {_UNCHANGED}",
            expanded=False,
        )
    note = f"Expanded from {count_words(prompt)} to {count_words(result.text)} words"
    if result.trimmed:
        note += f", up to the last whole sentence within {max_tokens} tokens"
    return Expansion(result.text, f"{note}.", expanded=True)


def expansion_instruction(
    task: Task, language: Language, max_tokens: int, *, with_image: bool
) -> str:
    """Return the system message for a task.

    Args:
        task: What the prompt is for.
        language: What to write in.
        max_tokens: Limit of the answer, from which the number of words is taken.
        with_image: Whether the model sees the picture that the task starts from.
    """
    texts = _instructions()
    about = task if with_image or task not in LOOKING_TASKS else f"{task}_unseen"
    # a word of English takes 1.3 of Qwen's tokens, one of Russian 2.5
    form = texts["form"].replace("{words}", str(max(1, max_tokens // 2)))
    return f"{texts[about]} {form} {texts[language]}"


def expansion_chat(prompt: str, instruction: str, *, with_image: bool) -> str:
    """Return the chat that the answer continues, in Qwen's format.

    Raises:
        ValueError: if the prompt holds one of the format's own tokens.
    """
    refuse_tags(prompt)
    picture = "".join(IMAGE_TAGS) if with_image else ""
    return (
        f"{START_TAG}system\n{instruction}{END_TAG}\n"
        f"{START_TAG}user\n{picture}{prompt}{END_TAG}\n"
        f"{START_TAG}assistant\n"
    )


@lru_cache(maxsize=1)
def _instructions() -> dict[str, str]:
    path = Path(__file__).with_name("instructions.json")
    return json.loads(path.read_text(encoding="utf-8"))
