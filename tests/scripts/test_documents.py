"""What the documents name is there: links, files, commands with their options, nodes."""

from __future__ import annotations

import io
import json
import re
import shlex
from contextlib import redirect_stderr, redirect_stdout
from functools import cache
from pathlib import Path

import pytest

from kandinsky_core.__main__ import main
from tooling.environment import ROOT

README = ROOT / "README.md"
FOLDERS = ("docs", "kandinsky_core", "web/docs")
DOCUMENTS = sorted(
    [*ROOT.glob("*.md"), *(path for name in FOLDERS for path in (ROOT / name).rglob("*.md"))]
)
LINK = re.compile(r"\]\(([^)\s]+)\)")
FENCED = re.compile(r"^```\w*\n(.*?)^```", re.MULTILINE | re.DOTALL)
SPAN = re.compile(r"`([^`]+)`")
OURS = re.compile(r"(tests|docs|scripts|kandinsky_core|nodes|workflows|benchmarks|web)/[\w./-]+")
MODULE = re.compile(r"\w+(/\w+)*/\w+\.py")
"""A file in a folder, such as flow/path.py: of the project, the core or its training."""

each_document = pytest.mark.parametrize(
    "path", DOCUMENTS, ids=lambda path: path.relative_to(ROOT).as_posix()
)


def text_of(path: Path) -> str:
    return path.read_text(encoding="utf-8")


def links(text: str) -> list[str]:
    """Targets inside the project."""
    return [link for link in LINK.findall(text) if "://" not in link]


def code(text: str) -> list[str]:
    """Lines of code blocks, continued ones joined, and code in running text."""
    blocks = [block.replace("\\\n", " ").splitlines() for block in FENCED.findall(text)]
    spans = [" ".join(span.split()) for span in SPAN.findall(FENCED.sub("", text))]
    return [line.strip() for block in blocks for line in block] + spans


def words_of(command: str) -> list[str]:
    try:
        return shlex.split(command, comments=True)
    except ValueError:  # a lone quote: prose, not a command
        return []


def heading_id(heading: str) -> str:
    """As GitHub names a heading."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


@each_document
def test_links_lead_somewhere(path):
    for link in links(text_of(path)):
        target, _, anchor = link.partition("#")
        file = (path.parent / target).resolve() if target else path
        assert file.exists(), f"{path.name} links to {link}"
        if anchor:
            headings = re.findall(r"^#+ (.+)$", text_of(file), re.MULTILINE)
            assert anchor in map(heading_id, headings), f"{path.name} links to {link}"


@each_document
def test_files_that_are_named_are_there(path):
    words = [word for each in code(text_of(path)) for word in re.split(r"[\s=\"']+", each)]
    named = {word.rstrip(".") for word in words if OURS.fullmatch(word)}
    named |= {word for word in words if MODULE.fullmatch(word)}
    bases = (ROOT, ROOT / "kandinsky_core", ROOT / "kandinsky_core" / "training")
    missing = [name for name in named if not any((base / name).exists() for base in bases)]
    assert sorted(missing) == []


@cache
def help_of(*command: str) -> str:
    """Return what a command prints for --help; the test fails if there is no such command."""
    printed = io.StringIO()
    with redirect_stdout(printed), redirect_stderr(printed), pytest.raises(SystemExit) as stopped:
        main([*command, "--help"])
    assert stopped.value.code == 0, f"{command}: {printed.getvalue()}"
    return printed.getvalue()


def check_command_line(words: list[str]) -> None:
    """Check a command of `python -m kandinsky_core` and the options that are shown with it."""
    depth = 2 if words[0] == "lora" and len(words) > 1 else 1
    shown = help_of(*words[:depth])
    for word in words[depth:]:
        option = word.split("=")[0]
        if option.startswith("--"):
            assert re.search(rf"{option}\b", shown), f"{' '.join(words)}: no {option}"


def check_module(name: str) -> None:
    """Check what `python -m` is given; nothing is imported."""
    place = ROOT.joinpath(*name.split("."))
    assert place.with_suffix(".py").is_file() or (place / "__main__.py").is_file(), name


def test_a_command_that_is_not_there_is_noticed():
    for words in (["make"], ["generate", "x", "--stepz", "3"], ["lora", "shew", "x"]):
        with pytest.raises(AssertionError):
            check_command_line(words)
    with pytest.raises(AssertionError):
        check_module("kandinsky_core.trained")


@each_document
def test_commands_are_there(path):
    from manage import _parser

    targets = re.search(r"^\.PHONY: (.+)$", text_of(ROOT / "Makefile"), re.MULTILINE)
    assert targets
    for each in code(text_of(path)):
        words = words_of(each)
        if words[:3] == ["python", "-m", "kandinsky_core"] and len(words) > 3:
            check_command_line(words[3:])
        elif words[:2] == ["python", "-m"] and len(words) > 2:
            if words[2].split(".")[0] in ("kandinsky_core", "benchmarks"):
                check_module(words[2])
        elif words[:2] == ["python", "scripts/manage.py"]:
            _parser().parse_args(words[2:3])
        elif words[:1] == ["make"] and len(words) > 1:
            assert words[1] in targets[1].split(), each


def test_the_table_of_the_command_line_is_true():
    rows = [line for line in text_of(ROOT / "docs/command_line.md").splitlines() if "|" in line]
    verbs = re.search(r"\{([\w,-]+)\}", help_of())
    assert verbs
    seen = set()
    for span in (span for row in rows for span in SPAN.findall(row)):
        words = words_of(span)
        if words and words[0] in verbs[1].split(","):
            check_command_line(words)
            seen.add(words[0])
    assert seen == set(verbs[1].split(","))


def test_every_node_is_named_once_in_its_group():
    page = text_of(ROOT / "docs" / "nodes.md")
    listed = re.findall(r"\| `(K5_\w+)` \|", page)
    contract = json.loads(text_of(ROOT / "tests" / "nodes" / "contract.json"))
    assert sorted(listed) == sorted(contract)
    groups = re.findall(r"^## (.+)$", page, re.MULTILINE)
    assert re.findall(r"^\* \*\*(.+?)\*\*: ", text_of(README), re.MULTILINE) == groups


def test_the_readme_stays_short():
    assert len(text_of(README).split()) <= 1200
