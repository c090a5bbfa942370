"""Plant small faults in the core, one at a time, and see whether a test fails.

A run is for one commit and goes on where an earlier one stopped. What it finds is kept in
.cache/mutants/. Needs a system that forks (Linux, macOS).
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from . import tests
from .reached import Reached, measure
from .sample import Mutant, choose
from .tree import Tree
from .verdicts import Verdict, Verdicts, change

FIRST_FILES, FIRST_SECONDS = 3, 4.0
"""How much is asked first: nearly every fault that is caught is caught there."""
SLOWER = 10
"""How many times longer than measured tests may take before they count as caught."""
START = 60.0
"""Seconds that a process may take beside its tests."""


class Trial:
    """Asks the tests about one fault after the other.

    Args:
        tree: The copy.
        reached: Which tests run what.
        budget: Seconds of tests for one fault.
    """

    def __init__(self, tree: Tree, reached: Reached, budget: float) -> None:
        self.tree = tree
        self.reached = reached
        self.budget = budget
        self._log = tree.folder / "last.log"
        self._trusted: set[str] = set()
        self._unsteady: set[str] = set()

    def judge(self, mutant: Mutant) -> Verdict:
        """Plant a fault and run the tests that reach it, until one fails."""
        reaching = self._reaching(mutant)
        if not reaching:
            return Verdict(mutant.name, "unreached")
        planted = mutant.plant(self.tree.read(mutant.file))
        asked = 0
        for chosen in self._rounds(reaching):
            asked += len(chosen)
            while chosen := [name for name in chosen if name not in self._unsteady]:
                with self.tree.planted(mutant.file, planted):
                    code, test = self._ask(chosen)
                if code == tests.PASSED:
                    break
                if not self._passes_unharmed(chosen, test):
                    continue
                outcome = "timeout" if code == tests.TIMED_OUT else "failed" if test else "broken"
                return Verdict(mutant.name, outcome, test, asked, len(reaching))
        return Verdict(mutant.name, "survived", "", asked, len(reaching))

    def _reaching(self, mutant: Mutant) -> set[str]:
        lines = range(mutant.first_line, mutant.last_line + 1)
        found = self.reached.of_lines(mutant.file, lines)
        if mutant.at_import:
            found |= self.reached.of_file(mutant.file)
        if mutant.at_import or not found:
            found |= self.reached.that_name(mutant.file, self.tree.root)
        return found

    def _rounds(self, reaching: set[str]) -> list[list[str]]:
        """Return the tests of the files that are most about this line; then all others that there
        is time for.

        A file is about a line if many of its tests run it. Within a file the quickest come first.
        """
        seconds = self.reached.seconds
        all_of: dict[str, int] = {}
        for name in seconds:
            all_of[_file(name)] = all_of.get(_file(name), 0) + 1
        by_file: dict[str, list[str]] = {}
        for name in sorted(reaching, key=lambda name: (seconds[name], name)):
            by_file.setdefault(_file(name), []).append(name)
        files = sorted(by_file, key=lambda file: (-len(by_file[file]) / all_of[file], file))
        first = _within([n for file in files[:FIRST_FILES] for n in by_file[file]], seconds,
                        FIRST_SECONDS)  # fmt: skip
        others = [name for file in files for name in by_file[file] if name not in set(first)]
        quickest = _within(sorted(others, key=lambda name: seconds[name]), seconds, self.budget)
        kept = set(quickest)
        # a file's tests together: its fixtures are made once
        rounds = [first, [name for name in others if name in kept]]
        return [names for names in rounds if names]

    def _ask(self, chosen: Sequence[str]) -> tuple[int, str]:
        """Exit code of pytest, and the first test that failed."""
        failed = self.tree.folder / "failed"
        failed.unlink(missing_ok=True)
        expected = sum(self.reached.seconds[name] for name in chosen)
        limit = START + SLOWER * expected
        options = {"log": self._log, "seconds": limit, "plugins": [_FirstFailure(failed)]}
        code = tests.run(self.tree.root, chosen, **options)
        if code == tests.NOT_FOUND:
            # the fault changed the parameters of tests, and so their names
            files = list(dict.fromkeys(map(_file, chosen)))
            code = tests.run(self.tree.root, files, **options)
        return code, failed.read_text(encoding="utf-8") if failed.exists() else ""

    def _passes_unharmed(self, chosen: Sequence[str], test: str) -> bool:
        """Whether a test that failed passes without the fault, after the same tests as then.

        Raises:
            SystemExit: Tests cannot even be collected without a fault.
        """
        if test in self._trusted:
            return True
        until = chosen[: chosen.index(test) + 1] if test in chosen else chosen
        code, other = self._ask(until)
        if code == tests.PASSED:
            self._trusted |= {test} - {""}
            return True
        unsteady = {test, other} - {""}
        if not unsteady:
            raise SystemExit(f"The tests do not run without a fault either: see {self._log}")
        for name in unsteady:
            print(f"  not asked from here on, it fails without a fault: {name}", flush=True)
        self._unsteady |= unsteady
        return False


class _FirstFailure:
    """Plugin of pytest: writes down which test failed."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.failed and not self.path.exists():
            self.path.write_text(report.nodeid, encoding="utf-8")


def _file(test: str) -> str:
    return test.split("::")[0]


def _within(names: Sequence[str], seconds: dict[str, float], budget: float) -> list[str]:
    """Return the first ones that take so long together, one at least."""
    kept, total = [], 0.0
    for name in names:
        total += seconds[name]
        if kept and total > budget:
            break
        kept.append(name)
    return kept


def _sample(tree: Tree, args: argparse.Namespace) -> list[Mutant]:
    """Read the sample that these numbers give, or draw it."""
    numbers = f"{args.count}-{args.least}-{args.seed}"
    path = tree.folder / f"sample-{numbers}.json"
    if not path.exists():
        chosen = choose(tree, args.count, args.least, args.seed)
        path.write_text(json.dumps([vars(mutant) for mutant in chosen]), encoding="utf-8")
    return [Mutant(**each) for each in json.loads(path.read_text(encoding="utf-8"))]


def main(given: Sequence[str] | None = None) -> int:
    """Run what is left of a sample; returns 0 if it was finished."""
    parser = argparse.ArgumentParser(prog="make mutants", description=__doc__)
    parser.add_argument("--commit", default="HEAD", help="whose core and tests (default HEAD)")
    parser.add_argument("--count", type=int, default=300, help="faults in all")
    parser.add_argument("--least", type=int, default=30, help="of them in each folder")
    parser.add_argument("--seed", type=int, default=0, help="of the choice")
    parser.add_argument("--budget", type=float, default=20.0, help="seconds of tests for each")
    parser.add_argument("--report", action="store_true", help="say what is known, run nothing")
    parser.add_argument("--again", action="store_true", help="ask again about what survived")
    args = parser.parse_args(given)
    tree = Tree(args.commit)
    tree.make()
    mutants = _sample(tree, args)
    verdicts = Verdicts(tree.folder / "verdicts.jsonl")
    if not args.report:
        tree.restore(sorted({mutant.file for mutant in mutants}))
        reached = measure(tree)
        tests.import_beforehand(reached.modules)
        trial = Trial(tree, reached, args.budget)
        for number, mutant in enumerate(mutants, start=1):
            known = verdicts.known.get(mutant.name)
            if known and not (args.again and not known.is_caught):
                continue
            verdict = trial.judge(mutant)
            verdicts.add(verdict)
            print(f"{number}/{len(mutants)} {verdict.outcome}: {mutant.name}", flush=True)
            if not verdict.is_caught:
                print(*change(mutant, tree), sep="\n", flush=True)
    print(verdicts.survivors(mutants, tree))
    print(f"\nCommit {tree.commit}, seed {args.seed}:\n{verdicts.summary(mutants)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
