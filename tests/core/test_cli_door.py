"""The door of the command line: every option ends in a frozen value, and nothing else passes."""

from __future__ import annotations

import argparse
import ast
from dataclasses import fields, is_dataclass
from pathlib import Path

import pytest

from kandinsky_core.cli import jobs
from kandinsky_core.cli.parser import build_parser

CLI = Path(jobs.__file__).parent
NOT_DECIDING = {"--device", "--vae-memory", "--output", "--sheet"}
"""Options of `generate` with which a list that was stopped may go on."""
OF_LISTS = {"prompt", "--prompts", "--split"}
COMMANDS = (
    ("generate", "a circle"),
    ("generate", "--prompts", "list.txt"),
    ("plan",),
    ("plan", "--all"),
    ("calibrate", "a circle"),
    ("show", "a.png"),
    ("expand", "a circle", "--text-encoder", "folder"),
    ("identify", "a.gguf"),
    ("lora", "show", "a.safetensors"),
    ("lora", "convert", "a.safetensors", "b.safetensors", "--style", "peft"),
    ("convert-workflow", "a.json", "b.json"),
    ("build-kernel",),
)


def asked(*words: str) -> object:
    args = build_parser().parse_args(words)
    return args.read(args)


def subparsers(parser: argparse.ArgumentParser) -> dict[str, argparse.ArgumentParser]:
    (action,) = (a for a in parser._actions if isinstance(a, argparse._SubParsersAction))
    return dict(action.choices)


def is_frozen(value: object) -> bool:
    parts = (getattr(value, field.name) for field in fields(value))
    return type(value).__dataclass_params__.frozen and all(
        is_frozen(part) for part in parts if is_dataclass(part)
    )


@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
def test_what_a_command_asks_for_is_frozen(words):
    assert is_frozen(asked(*words))


def test_every_command_is_tried_here():
    assert {words[0] for words in COMMANDS} == subparsers(build_parser()).keys()


def test_namespaces_end_in_the_functions_that_read_them():
    seen = set()
    for path in CLI.glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef):
                arguments = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
                marks = [ast.unparse(each.annotation) for each in arguments if each.annotation]
                if any("Namespace" in mark for mark in marks):
                    seen.add(node.name)
    assert "read_generate" in seen
    assert all(name.startswith("read") for name in seen), seen


def test_every_option_of_generate_reaches_the_job_and_decides_it_or_is_known_not_to():
    tried = set()
    for action in subparsers(build_parser())["generate"]._actions:
        name = action.option_strings[-1] if action.option_strings else action.dest
        if name in OF_LISTS | {"--help"}:
            continue
        beside = ["--extend", "a.mp4"] if name == "--overlap" else []
        plain = asked("generate", "a circle", *beside).job
        words = ["generate", "a circle", *beside, name]
        if action.choices:
            words.append(next(choice for choice in action.choices if choice != action.default))
        elif action.nargs == 3:
            words += ["7", "7", "7"]
        elif action.nargs != 0:
            words.append("7")
        job = asked(*words).job
        assert job != plain, name
        decides = jobs._deciding(job) != jobs._deciding(plain)
        assert decides == (name not in NOT_DECIDING), name
        tried.add(name)
    assert tried >= NOT_DECIDING


def test_a_job_is_named_by_what_was_asked_for_alone():
    """An option that comes later leaves the outputs of older lists where they are."""
    assert jobs._deciding(asked("generate", "a circle").job) == {
        "request": {"prompt": "a circle"},
        "model": {},
    }
    job = asked("generate", "a", "--seed", "3", "--lora", "b:0.5", "--magcache", "--cfg", "1").job
    assert jobs._deciding(job) == {
        "request": {"prompt": "a", "seed": "3", "guidance_scale": "1.0"},
        "model": {"loras": [["b", "0.5"]]},
        "caching": {"is_wanted": "True"},
    }
