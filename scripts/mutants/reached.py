"""Which tests run which lines, and how long each takes: measured once, over all tests."""

from __future__ import annotations

import json
import sys
from collections import defaultdict
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path

import coverage
import pytest

from . import tests
from .tree import TESTS, Tree

LIMIT = 3 * 3600
"""Seconds for all tests."""
QUICK = ("-m", "not slow")
"""Options of pytest: tests of more than ten seconds are not asked."""


class Reached:
    """What was measured.

    Args:
        found: As `measure` wrote it.
    """

    def __init__(self, found: dict) -> None:
        self.seconds: dict[str, float] = found["seconds"]
        self.modules: list[str] = found["modules"]
        self._names: list[str] = found["names"]
        self._lines: dict[str, dict[str, list[int]]] = found["lines"]

    def of_lines(self, file: str, lines: range) -> set[str]:
        """Return the tests that run one of these lines."""
        of_file = self._lines.get(file, {})
        return {self._names[index] for line in lines for index in of_file.get(str(line), ())}

    def of_file(self, file: str) -> set[str]:
        """Return the tests that run any line of a file after it was imported."""
        return {self._names[i] for indices in self._lines.get(file, {}).values() for i in indices}

    def that_name(self, file: str, root: Path) -> set[str]:
        """Return tests whose file mentions a module, for what runs at import or in other
        processes."""
        module = file.removesuffix(".py").removesuffix("/__init__").replace("/", ".")
        mentioning = {
            path for path in self._files if module in (root / path).read_text(encoding="utf-8")
        }
        return {name for name in self.seconds if name.split("::")[0] in mentioning}

    @cached_property
    def _files(self) -> set[str]:
        return {name.split("::")[0] for name in self.seconds}


class _Recorder:
    """Plugin of pytest: a context of coverage and a duration for every test."""

    def __init__(self, tree: Tree, path: Path) -> None:
        self.path = path
        self.root = tree.root
        self.seconds: dict[str, float] = defaultdict(float)
        self.failed: set[str] = set()
        self.coverage = coverage.Coverage(
            data_file=None, source=[str(tree.root / "kandinsky_core")], config_file=False
        )

    def pytest_sessionstart(self) -> None:
        self.coverage.start()

    @pytest.hookimpl(hookwrapper=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Iterator[None]:
        self.coverage.switch_context(item.nodeid)
        yield
        self.coverage.switch_context("")

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        self.seconds[report.nodeid] += report.duration
        if not report.passed:
            self.failed.add(report.nodeid)

    def pytest_sessionfinish(self, exitstatus: int) -> None:
        self.coverage.stop()
        if exitstatus not in (tests.PASSED, tests.FAILED):
            return
        names = sorted(set(self.seconds) - self.failed)
        places = {name: index for index, name in enumerate(names)}
        data, lines = self.coverage.get_data(), {}
        for path in data.measured_files():
            file = Path(path).relative_to(self.root).as_posix()
            lines[file] = {
                str(line): [places[each] for each in contexts if each in places]
                for line, contexts in data.contexts_by_lineno(path).items()
            }
        found = {
            "names": names,
            "seconds": {name: round(self.seconds[name], 3) for name in names},
            "lines": lines,
            "failed": sorted(self.failed),
            "modules": [name for name in sys.modules if not name.startswith(tests.OURS)],
        }
        self.path.write_text(json.dumps(found), encoding="utf-8")


def measure(tree: Tree) -> Reached:
    """Read what was measured on the copy, or run all tests once and measure it."""
    path = tree.folder / "reached.json"
    if not path.exists():
        print("Running every test once, to see which lines each of them runs", flush=True)
        recorder = _Recorder(tree, path)
        log = tree.folder / "reached.log"
        tests.run(tree.root, TESTS, log=log, seconds=LIMIT, plugins=[recorder], options=QUICK)
        if not path.exists():
            raise SystemExit(f"The tests could not be run: see {log}")
    return Reached(json.loads(path.read_text(encoding="utf-8")))
