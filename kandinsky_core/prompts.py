"""Lists of prompts, for jobs that run while nobody watches.

One prompt a line, or blocks of lines. A line that begins with # is a comment. Settings of a prompt
stand behind it: `a red circle moves up | seed=7 steps=20`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, NamedTuple

from .seeds import MOST_SEED

Split = Literal["auto", "lines", "blocks"]
"""What separates prompts: ends of lines, or lines of `---` (where there are none, empty lines).
auto takes blocks where there is a line of `---`."""

MOST_PROMPTS = 1000
MOST_CHARACTERS = 10_000
"""Longest prompt, in characters."""
_ERRORS_SHOWN = 5
_NAME_CHARACTERS = 40

_SEPARATOR = re.compile(r"\s*-{3,}\s*")
_SETTING = re.compile(r"(\w+)=(\S+)")


class _Range(NamedTuple):
    kind: type[int] | type[float]
    low: float
    high: float


_SETTINGS: dict[str, _Range] = {
    "seed": _Range(int, 0, MOST_SEED),
    "steps": _Range(int, 1, 1000),
    "cfg": _Range(float, 0.1, 100.0),
    "shift": _Range(float, 0.01, 100.0),
    "width": _Range(int, 16, 4096),
    "height": _Range(int, 16, 4096),
    "length": _Range(int, 1, 1000),
}
"""What may stand behind a prompt, as the nodes spell it."""


@dataclass(frozen=True)
class PromptEntry:
    """One prompt of a list."""

    prompt: str
    line: int
    """Where it begins in the list, from 1."""
    settings: Mapping[str, int | float]
    """What stands behind it."""

    @property
    def short_name(self) -> str:
        """The first words, as part of a file name."""
        words = re.sub(r"[\W_]+", "_", self.prompt.lower())
        return words[:_NAME_CHARACTERS].strip("_") or "prompt"


def parse_prompts(
    text: str, *, source: str = "prompts", split: Split = "auto"
) -> list[PromptEntry]:
    """Read a list of prompts.

    Args:
        text: The list.
        source: What to call it in messages, e.g. a file name.
        split: What separates prompts.

    Returns:
        Its prompts in order, at least one.

    Raises:
        ValueError: There is no prompt or there are too many, or lines are wrong; the sentence
            names them by number.
    """
    entries: list[PromptEntry] = []
    errors: list[str] = []
    for first, last, part in _parts(text.removeprefix("\ufeff"), split):
        try:
            entries.append(_entry(first, part))
        except ValueError as error:
            errors.append(f"line {last}: {error}")
    if errors:
        more = len(errors) - _ERRORS_SHOWN
        shown = errors[:_ERRORS_SHOWN] + ([f"and {more} more"] if more > 0 else [])
        raise ValueError(f"{source}: {'; '.join(shown)}.")
    if not entries:
        raise ValueError(f"{source}: expected at least one prompt, found none; write one a line.")
    if len(entries) > MOST_PROMPTS:
        raise ValueError(
            f"{source}: expected at most {MOST_PROMPTS} prompts, found {len(entries)}; "
            "divide the list."
        )
    return entries


def _parts(text: str, split: Split) -> list[tuple[int, int, str]]:
    """Return the numbers of the first and last line, and text, of each prompt."""
    lines = [
        (number, line.strip())
        for number, line in enumerate(text.splitlines(), start=1)
        if not line.lstrip().startswith("#")
    ]
    separated = any(_SEPARATOR.fullmatch(line) for _, line in lines)
    if split == "auto":
        split = "blocks" if separated else "lines"
    parts: list[tuple[int, int, str]] = []
    is_open = False
    for number, line in lines:
        if not line or _SEPARATOR.fullmatch(line):
            # an empty line inside a block between `---` is a paragraph
            is_open = is_open and not line and separated
        elif is_open:
            first, _, before = parts.pop()
            parts.append((first, number, f"{before} {line}"))
        else:
            parts.append((number, number, line))
            is_open = split == "blocks"
    return parts


def _entry(line: int, text: str) -> PromptEntry:
    prompt, bar, tail = text.rpartition("|")
    if not bar or "=" not in tail:  # a bar may be part of a prompt
        prompt, tail = text, ""
    prompt = prompt.strip()
    if not prompt:
        raise ValueError("there is no prompt before '|'")
    if len(prompt) > MOST_CHARACTERS:
        raise ValueError(f"the prompt has {len(prompt)} characters, at most {MOST_CHARACTERS} fit")
    settings: dict[str, int | float] = {}
    for word in tail.split():
        name, value = _setting(word)
        if name in settings:
            raise ValueError(f"{name} is given twice")
        settings[name] = value
    return PromptEntry(prompt, line, settings)


def _setting(word: str) -> tuple[str, int | float]:
    match = _SETTING.fullmatch(word)
    if match is None or match[1] not in _SETTINGS:
        raise ValueError(
            f"expected settings such as seed=7 (of {', '.join(_SETTINGS)}), found {word[:40]!r}"
        )
    name, text = match[1], match[2]
    kind, low, high = _SETTINGS[name]
    try:
        value = kind(text)
    except ValueError:
        value = None
    if value is None or not low <= value <= high:
        what = "a whole number" if kind is int else "a number"
        raise ValueError(f"{name} must be {what} from {low} to {high}, found {text[:40]!r}")
    return name, value
