"""Planted faults: which there are, and that the copy, not the tree, holds them."""

from __future__ import annotations

import ast
import json

import pytest

from mutants import __main__ as program
from mutants import tests as runner
from mutants.reached import Reached
from mutants.sample import Mutant, choose, find
from mutants.tree import FOLDERS, Tree
from mutants.verdicts import Verdict, Verdicts
from tooling.environment import ROOT

SOURCE = '''"""Adds 1 + 1."""
import logging
logger = logging.getLogger(__name__)
LIMIT = 3


def add(a: int | None, b: int = 2) -> int | None:
    """More than 1 + 1."""
    if a > LIMIT:
        raise ValueError(f"a is {a + 4}")
    assert b > 5
    for x, y in zip(a, b, strict=True):
        logger.info("%s", 6 + a)
    return (a +
            b)
'''


def places():
    return {(group[0].line, group[0].column): group for group in find("flow/x.py", SOURCE)}


def test_texts_annotations_and_assertions_have_no_faults():
    found = places()
    # the limit, the default, the comparison, its `if`, the loop, the sum
    assert set(found) == {(4, 8), (7, 32), (9, 7), (9, 9), (12, 16), (14, 14)}
    assert {fault.operator for fault in found[9, 9]} == {
        "core/ReplaceComparisonOperator_Gt_GtE",
        "core/ReplaceComparisonOperator_Gt_LtE",
    }


def test_a_fault_is_planted_where_it_was_found():
    (fault,) = places()[14, 14]
    assert fault.plant(SOURCE) == SOURCE.replace("a +\n", "a -\n")
    numbers = [
        ast.literal_eval(fault.plant(SOURCE).split("LIMIT =")[1].split("\n")[0].strip())
        for fault in places()[4, 8]
    ]
    assert numbers == [4, 2]


def test_statements_know_their_lines_and_when_they_run():
    found = {place: group[0] for place, group in places().items()}
    lines = {place: (each.first_line, each.last_line) for place, each in found.items()}
    assert lines[14, 14] == (14, 15)
    assert lines[9, 9] == (9, 9)
    assert [found[place].at_import for place in ((4, 8), (7, 32), (9, 9))] == [True, True, False]


class Copy:
    """A tree of one file in each folder."""

    def __init__(self, root):
        self.root = self.folder = root
        for folder in FOLDERS:
            path = root / "kandinsky_core" / folder / "x.py"
            path.parent.mkdir(parents=True)
            path.write_text(SOURCE)

    sources = Tree.sources
    planted = Tree.planted
    restore = Tree.restore

    def read(self, _):
        return SOURCE


def test_the_choice_is_the_same_for_a_seed_and_fair_to_folders(tmp_path):
    tree = Copy(tmp_path)
    chosen = choose(tree, 28, 2, seed=0)
    assert [each.folder for each in chosen[:7]] == list(FOLDERS)
    assert [each.folder for each in chosen].count("flow") == 4
    assert chosen == choose(tree, 28, 2, seed=0) != choose(tree, 28, 2, seed=1)
    assert len({(each.file, each.line, each.column) for each in chosen}) == 28


def test_what_was_planted_is_taken_out_again(tmp_path):
    tree, file = Copy(tmp_path), "kandinsky_core/flow/x.py"
    with pytest.raises(KeyboardInterrupt), tree.planted(file, "x = 1"):
        assert (tmp_path / file).read_text() == "x = 1"
        raise KeyboardInterrupt
    assert (tmp_path / file).read_text() == SOURCE
    (tmp_path / file).write_text("x = 1")  # an interruption that nothing could catch
    tree.restore([file])
    assert (tmp_path / file).read_text() == SOURCE


CORE = """
LIMIT = 3

def double(x):
    return x * 2

def unseen(x):
    return x + 1
"""
TESTS = """
from kandinsky_core.flow.x import double, unseen

def test_double():
    assert double(3) == 6

def test_unseen():
    unseen(1)
"""


@pytest.fixture
def trial(tmp_path):
    """Return a copy whose tests see one function's result and not the other's."""
    tree = Copy(tmp_path)
    file = "kandinsky_core/flow/x.py"
    (tmp_path / file).write_text(CORE)
    for folder in ("", "flow"):
        (tmp_path / "kandinsky_core" / folder / "__init__.py").touch()
    (tmp_path / "pyproject.toml").write_text(
        '[tool.pytest.ini_options]\naddopts = ["--import-mode=importlib"]\n'
    )
    (tmp_path / "test_x.py").write_text(TESTS)
    tree.read = lambda _: CORE
    names = ["test_x.py::test_double", "test_x.py::test_unseen"]
    lines = {file: {"5": [0], "8": [1]}}
    found = {"names": names, "seconds": dict.fromkeys(names, 0.01), "lines": lines, "modules": []}
    return program.Trial(tree, Reached(found), budget=5.0)


@pytest.mark.parametrize(
    ("line", "operator", "outcome", "test"),
    [
        (5, "core/ReplaceBinaryOperator_Mul_Div", "failed", "test_x.py::test_double"),
        (8, "core/ReplaceBinaryOperator_Add_Sub", "survived", ""),
        (2, "core/NumberReplacer", "survived", ""),
    ],
)
def test_a_fault_is_caught_where_a_test_looks(trial, line, operator, outcome, test):
    (fault,) = [
        fault
        for group in find("kandinsky_core/flow/x.py", CORE)
        for fault in group
        if (fault.line, fault.operator) == (line, operator) and fault.occurrence % 2 == 0
    ]
    verdict = trial.judge(fault)
    assert (verdict.outcome, verdict.test) == (outcome, test)


def test_tests_that_do_not_end_are_ended(tmp_path):
    (tmp_path / "pyproject.toml").write_text("[tool.pytest.ini_options]\n")
    (tmp_path / "test_x.py").write_text("def test_x():\n    while True: pass\n")
    code = runner.run(tmp_path, ["test_x.py"], log=tmp_path / "log", seconds=3)
    assert code == runner.TIMED_OUT


def test_verdicts_are_kept_and_counted(tmp_path):
    path = tmp_path / "verdicts.jsonl"
    faults = [
        Mutant("kandinsky_core/flow/x.py", n, 0, "core/AddNot", 0, n, n, False) for n in (1, 2)
    ]
    kept = Verdicts(path)
    kept.add(Verdict(faults[0].name, "failed", "test_x"))
    kept.add(Verdict(faults[1].name, "survived"))
    again = Verdicts(path)
    assert again.known == kept.known
    assert "| flow | 2 | 2 | 1 | 50 % |" in again.summary(faults)
    again.add(Verdict(faults[1].name, "timeout"))
    assert "| all | 2 | 2 | 2 | 100 % |" in Verdicts(path).summary(faults)
    assert len(path.read_text().splitlines()) == 3
    assert json.loads(path.read_text().splitlines()[0])["test"] == "test_x"


def test_the_copy_is_of_the_commit():
    tree = Tree("HEAD")
    assert len(tree.commit) == 40
    assert tree.folder.is_relative_to((ROOT / ".cache").resolve() / "mutants")
    assert tree.read("LICENSE").startswith("MIT License")
