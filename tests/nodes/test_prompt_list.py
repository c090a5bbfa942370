"""K5_PromptList: lists that the host runs a workflow over."""

from __future__ import annotations

import os

import pytest

NAMES = ("prompt", "seed", "name", "steps", "cfg", "shift", "width", "height", "length")


@pytest.fixture
def read(run):
    """Run K5_PromptList; returns its lists by name."""

    def call(text="", **inputs):
        given = {"file": "(none)", "split": "auto", "seed": 5, "seed_step": 1, "start": 1}
        outputs = run("K5_PromptList", text=text, **(given | {"count": 0} | inputs))
        return dict(zip(NAMES, outputs, strict=True))

    return call


@pytest.fixture
def put(host):
    """Write a file into the input folder; returns its name."""
    written = []

    def write(name, content):
        path = host.base / "input" / name
        path.write_bytes(content)
        written.append(path)
        return name

    yield write
    for path in written:
        path.unlink()


def test_prompts_with_seeds_and_settings(read):
    lists = read("a circle\n# no\na square | seed=77 cfg=2 steps=9\na star")
    assert lists["prompt"] == ["a circle", "a square", "a star"]
    assert lists["seed"] == [5, 77, 7]
    assert lists["name"] == ["001_a_circle_seed5", "002_a_square_seed77", "003_a_star_seed7"]
    assert (lists["steps"], lists["cfg"], lists["length"]) == ([0, 9, 0], [0, 2, 0], [0, 0, 0])
    assert read("a\nb", seed_step=0)["seed"] == [5, 5]
    assert read("a\nb", seed=2**64 - 1)["seed"] == [2**64 - 1, 0]


def test_outputs_are_lists_for_the_host(host):
    node = host.pack["K5_PromptList"]
    node.INPUT_TYPES()
    assert all(node.OUTPUT_IS_LIST)
    assert len(node.OUTPUT_IS_LIST) == len(NAMES)


def test_a_part_keeps_its_numbers_and_seeds(read):
    lists = read("a\nb\nc\nd", start=2, count=2)
    assert lists["prompt"] == ["b", "c"]
    assert lists["seed"] == [6, 7]
    assert lists["name"] == ["002_b_seed6", "003_c_seed7"]


def test_a_file_comes_after_the_text_and_a_change_is_noticed(host, read, put):
    name = put("list.txt", "красный\nкруг\n---\nтри\n".encode())
    assert read("a", file=name)["prompt"] == ["a", "красный круг", "три"]
    assert read(file=name)["prompt"] == ["красный круг", "три"]
    fingerprint = host.pack["K5_PromptList"].fingerprint_inputs
    before = fingerprint(file=name)
    assert fingerprint(file=name) == before
    os.utime(host.base / "input" / name, (1, 1))
    assert fingerprint(file=name) != before
    choices = {each.id: each for each in host.pack["K5_PromptList"].define_schema().inputs}
    assert choices["file"].options == ["(none)", name]


@pytest.mark.parametrize(
    ("text", "inputs", "words"),
    [
        ("", {}, "text: expected at least one prompt"),
        ("a\nb | sped=2", {}, "text: line 2: expected settings such as seed=7"),
        ("a\nb", {"start": 3}, "start: expected at most 2, the number of prompts, found 3"),
        ("a", {"file": "nothing.txt"}, "file: there is no file 'nothing.txt' .*input folder"),
        ("a", {"file": "../models/x.txt"}, "file: there is no file"),
        ("a", {"file": "/etc/hostname"}, "file: there is no file"),
        ("a", {"file": "bad.txt"}, "file: bad.txt is no UTF-8 text"),
        ("a", {"file": "large.txt"}, "file: large.txt has 1,048,577 bytes"),
        ("a", {"file": "wrong.txt"}, "wrong.txt: line 1: seed must be"),
    ],
)
def test_what_cannot_be_read_is_one_sentence(read, put, text, inputs, words):
    put("bad.txt", b"\xff\xfe\x00")
    put("large.txt", b"a" * (2**20 + 1))
    put("wrong.txt", b"a | seed=x")
    with pytest.raises(ValueError, match=words):
        read(text, **inputs)
