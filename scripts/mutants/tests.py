"""Runs chosen tests of the copy in a process of their own, which starts with torch in memory.

A child that is forked has imported what does not change (torch, numpy, OpenCV...) and nothing of
the core: starting anew would take longer than most tests do.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import resource
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

PASSED, FAILED, NOT_FOUND = 0, 1, 4
"""Exit codes of pytest; others say that it could not even collect."""
TIMED_OUT = -1
MEMORY = 8 * 2**30
"""Bytes that a child may take: a fault in a size must not take the machine down."""
SCRIPTS = Path(__file__).resolve().parents[1]
OURS = ("kandinsky_core", "tests", "tooling", "mutants", "benchmarks", "conftest", "test_")


def import_beforehand(names: Sequence[str]) -> None:
    """Import modules that tests need, as far as they can be imported alone."""
    for name in names:
        if name not in sys.modules and not name.startswith(OURS):
            with contextlib.suppress(Exception):
                importlib.import_module(name)


def run(
    root: Path,
    tests: Sequence[str],
    *,
    log: Path,
    seconds: float,
    plugins: Sequence[object] = (),
    options: Sequence[str] = ("-x",),
) -> int:
    """Run tests in a forked child.

    Args:
        root: The copy.
        tests: Node ids or files, relative to it, in the order to run.
        log: Where the output goes.
        seconds: After which the child and all that it started are ended.
        plugins: Of pytest.
        options: Of pytest.

    Returns:
        Exit code of pytest, or TIMED_OUT.
    """
    sys.stdout.flush()
    child = os.fork()
    if child == 0:
        code = 70  # of a child that fails itself
        try:
            code = _run_here(root, tests, log, plugins, options)
        finally:
            os._exit(code)
    ends = time.monotonic() + seconds
    while time.monotonic() < ends:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.02)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return TIMED_OUT


def _run_here(
    root: Path,
    tests: Sequence[str],
    log: Path,
    plugins: Sequence[object],
    options: Sequence[str],
) -> int:
    os.setsid()
    resource.setrlimit(resource.RLIMIT_DATA, (MEMORY, MEMORY))
    output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(output, 1)
    os.dup2(output, 2)
    os.chdir(root)
    # what this process has of the working tree, the tests must find in the copy
    for name in [name for name in sys.modules if name.split(".")[0] in OURS]:
        del sys.modules[name]
    sys.path[:] = [place for place in sys.path if Path(place or ".").resolve() != SCRIPTS]
    # before the editable install, which means the working tree; for what tests start, too
    sys.path.insert(0, str(root))
    os.environ["PYTHONPATH"] = str(root)
    sys.dont_write_bytecode = True
    os.environ["PYTHONDONTWRITEBYTECODE"] = "1"
    common = ["--rootdir", str(root), "-c", str(root / "pyproject.toml"), "-q", "--tb=short"]
    code = pytest.main([*common, "-p", "no:cacheprovider", *options, *tests], list(plugins))
    sys.stdout.flush()
    return int(code)
