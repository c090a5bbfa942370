"""Tells an expanded prompt that can be used from what language models write when they fail."""

from __future__ import annotations

import re
from dataclasses import dataclass

from .writing import Written

MIN_WORDS = 4
"""Fewest different words of an expansion."""
MIN_NEW_WORDS = 2
"""Fewest words of an expansion that are not in the prompt."""
MIN_LETTERS = 0.6
"""Least share of letters and digits among what is not white space."""
RUN = 3
MIN_NEW_RUNS = 0.6
"""Least share of different ones among all runs of `RUN` words; prose is above 0.9."""
MIN_RUNS = 10
"""Fewest runs for that share to mean anything."""
ECHO_WORDS = 8
"""Words in a row that an answer may not share with its instruction."""

# Thai, Lao, Burmese, Khmer; kana, Han: written without spaces, so that each character is a word
_UNSPACED = (
    "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff"
    "\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
)
_WORD = re.compile(rf"(?=\w)[{_UNSPACED}]|[^\W{_UNSPACED}]+")
_CLOSING = "[\"'»”’)\\]」』）]*"
_SENTENCE_END = re.compile(rf"[.!?…]{_CLOSING}(?=\s|$)|[。！？]{_CLOSING}")
_STUTTER = re.compile(r"(\S.{0,15}?)(?:\s*\1){7}")
_QUOTES = (('"', '"'), ("«", "»"), ("“", "”"), ("'", "'"))


@dataclass(frozen=True)
class Review:
    """What is left of an answer, and why it cannot be used if so."""

    text: str
    """The answer as one paragraph."""
    problem: str | None
    """Completes "because ..."; None for an answer that can be used."""
    trimmed: bool
    """Whether the limit of tokens cut the answer and its last, broken sentence was dropped."""


def count_words(text: str) -> int:
    """Return the number of words; of characters where the script has no spaces between words."""
    return len(_WORD.findall(text))


def review(written: Written, *, prompt: str, instruction: str) -> Review:
    """Clean an answer and judge it.

    Args:
        written: What the model wrote.
        prompt: What it was asked to expand.
        instruction: What it was told to do.

    Returns:
        The answer as one paragraph without quotation marks around it, cut after the last whole
        sentence where the limit of tokens broke one.
    """
    text = " ".join(written.text.split())
    for opening, closing in _QUOTES:
        if len(text) > 1 and text.startswith(opening) and text.endswith(closing):
            text = text[1:-1].strip()
            break
    if written.finished:
        return Review(text, _problem(text, prompt, instruction), trimmed=False)
    ends = [match.end() for match in _SENTENCE_END.finditer(text)]
    whole = text[: ends[-1]] if ends else ""
    # a loop is the reason why it did not end, and says more than the missing sentence
    problem = _problem(text, prompt, instruction)
    if problem is None and not whole:
        problem = "the limit of tokens was reached before a sentence ended"
    return Review(whole, problem or _problem(whole, prompt, instruction), whole != text)


def _problem(text: str, prompt: str, instruction: str) -> str | None:
    words = _words(text)
    if not text:
        return "the model wrote nothing"
    if _STUTTER.search(text) or _repeats(words):
        return "the model repeated itself"
    if len(set(words)) < MIN_WORDS:
        return f"the model wrote no sentence, only {text[:40]!r}"
    signs = [char for char in text if not char.isspace()]
    if sum(char.isalnum() for char in signs) < MIN_LETTERS * len(signs):
        return "the model wrote signs instead of words"
    if _runs(words, ECHO_WORDS) & _runs(_words(instruction), ECHO_WORDS):
        return "the model repeated its instruction"
    if len(set(words) - set(_words(prompt))) < MIN_NEW_WORDS:
        return "the model added nothing to the prompt"
    return None


def _repeats(words: list[str]) -> bool:
    total = len(words) - RUN + 1
    return total >= MIN_RUNS and len(_runs(words, RUN)) < MIN_NEW_RUNS * total


def _runs(words: list[str], length: int) -> set[tuple[str, ...]]:
    return {tuple(words[i : i + length]) for i in range(len(words) - length + 1)}


def _words(text: str) -> list[str]:
    return [word.lower() for word in _WORD.findall(text)]
