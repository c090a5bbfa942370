"""Lists of prompts: what divides them, what stands behind them, and what is refused."""

from __future__ import annotations

import pytest

from kandinsky_core.prompts import MOST_CHARACTERS, MOST_PROMPTS, parse_prompts


def read(text):
    return [(entry.prompt, entry.line, dict(entry.settings)) for entry in parse_prompts(text)]


def prompts(text, split):
    return [(entry.prompt, entry.line) for entry in parse_prompts(text, split=split)]


def test_a_line_is_a_prompt_and_comments_are_none():
    text = "\ufeff# clips\n\na red circle\n  красный круг  \r\n   # no\na cat #1\n"
    assert read(text) == [("a red circle", 3, {}), ("красный круг", 4, {}), ("a cat #1", 6, {})]


def test_settings_stand_behind_the_prompt():
    text = "a | seed=7\nb|seed=18446744073709551615 steps=20 cfg=2.5 shift=3 width=768 height=512"
    assert read(text + " length=49\nc | d\ne | f | steps=4") == [
        ("a", 1, {"seed": 7}),
        (
            "b",
            2,
            {
                "seed": 2**64 - 1,
                "steps": 20,
                "cfg": 2.5,
                "shift": 3.0,
                "width": 768,
                "height": 512,
                "length": 49,
            },
        ),
        ("c | d", 3, {}),
        ("e | f", 4, {"steps": 4}),
    ]


def test_blocks_are_divided_by_dashes_or_by_empty_lines():
    dashes = "one\n\nstill one\n---\n# no\ntwo\n-----\n\n---\nthree | seed=1"
    expected = [("one still one", 1), ("two", 6), ("three", 10)]
    assert prompts(dashes, "auto") == prompts(dashes, "blocks") == expected
    assert prompts(dashes, "lines") == [("one", 1), ("still one", 3), ("two", 6), ("three", 10)]
    empty = "one\nstill one\n\n\ntwo"
    assert prompts(empty, "blocks") == [("one still one", 1), ("two", 5)]
    assert prompts(empty, "auto") == [("one", 1), ("still one", 2), ("two", 5)]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a\nb | seed=x", r"list\.txt: line 2: seed must be a whole number .*found 'x'"),
        ("a | seed=-1", "line 1: seed must be .* from 0 to 18446744073709551615, found '-1'"),
        ("a | seed=18446744073709551616", "line 1: seed must be"),
        ("a | steps=0", "from 1 to 1000, found '0'"),
        ("a | cfg=nan", "line 1: cfg must be a number"),
        ("a | sped=3", r"line 1: expected settings such as seed=7 .*steps.*, found 'sped=3'"),
        ("a | seed=3 fast", "found 'fast'"),
        ("a | seed=3 seed=4", "line 1: seed is given twice"),
        ("a\n\n| seed=3", "line 3: there is no prompt before"),
        ("a | seed=x\nok\nb | steps=x", "line 1: seed .*; line 3: steps "),
        ("", r"list\.txt: expected at least one prompt, found none"),
        ("# only\n---\n", "found none"),
        ("x" * (MOST_CHARACTERS + 1), f"has {MOST_CHARACTERS + 1} characters"),
        ("x\n" * (MOST_PROMPTS + 1), f"at most {MOST_PROMPTS} prompts, found {MOST_PROMPTS + 1}"),
        ("a | seed=x\n" * 9, "and 4 more"),
    ],
)
def test_wrong_lines_are_named(text, words):
    with pytest.raises(ValueError, match=words):
        parse_prompts(text, source="list.txt")


def test_names_for_files_are_short_and_plain():
    (entry,) = parse_prompts("../../etc/passwd: Красный круг " + "x" * 100)
    assert entry.short_name.startswith("etc_passwd_красный_круг")
    assert len(entry.short_name) <= 40
    assert parse_prompts("...")[0].short_name == "prompt"
