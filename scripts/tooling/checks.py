"""Everything `make test` runs: lint, format, types, spelling, then every test."""

from __future__ import annotations

import os
import shutil
import subprocess
import time

from . import comfyui, environment, javascript
from .environment import ROOT, ToolingError

BROWSERS = ("chromium", "chromium-browser", "google-chrome")


def run_all(pytest_args: list[str]) -> int:
    """Set up, check and test; returns 0 only if everything passed.

    Args:
        pytest_args: Passed on to pytest, e.g. ["tests/core", "-k", "nabla"]; then only pytest runs.
    """
    python = str(environment.ensure("test"))
    comfyui.obtain()
    ensure_browser()
    tests = ("tests", [str(environment.tool("pytest")), *pytest_args])
    checks = [] if pytest_args else _static_checks(python)
    failed = [name for name, command in [*checks, tests] if _run(name, command)]
    if failed:
        print(f"Failed: {', '.join(failed)}", flush=True)
    return bool(failed)


def _static_checks(python: str) -> list[tuple[str, list[str]]]:
    """Return the names and commands of what is checked without running the project."""
    return [
        ("lint", [python, "-m", "ruff", "check", "."]),
        ("format", [python, "-m", "ruff", "format", "--check", "."]),
        ("types", [python, "-m", "basedpyright"]),
        ("types of web/js", javascript.ensure()),
        ("spelling", [python, "-m", "codespell_lib"]),
    ]


def measure(arguments: list[str]) -> int:
    """Set up and run the benchmarks; returns 0 if they ran.

    Args:
        arguments: Passed on to `python -m benchmarks`, e.g. ["--groups", "attention"].
    """
    python = str(environment.ensure("test"))
    # optional: without a compiler the report has one column less
    subprocess.call([python, "-m", "kandinsky_core", "build-kernel"], cwd=ROOT)
    return subprocess.call([python, "-m", "benchmarks", *arguments], cwd=ROOT)


def plant_faults(arguments: list[str]) -> int:
    """Set up and see which small faults in the core a test catches; returns 0 if it ran.

    Args:
        arguments: Passed on to `scripts/mutants`, e.g. ["--count", "30", "--least", "0"].
    """
    python = str(environment.ensure("test"))
    # one thread: the tests are small, and a process with threads is not safely forked
    variables = {"OMP_NUM_THREADS": "1", **os.environ}
    command = [python, "-m", "mutants", *arguments]
    return subprocess.call(command, cwd=ROOT / "scripts", env=variables)


def ensure_browser() -> None:
    """Install a Chromium where there is none: Debian's as root, otherwise Playwright's own.

    Raises:
        ToolingError: If neither can be installed.
    """
    if browser_path() or _playwright_has_one():
        return
    if shutil.which("apt-get") and hasattr(os, "geteuid") and os.geteuid() == 0:
        print("Installing chromium", flush=True)
        variables = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
        install = ["apt-get", "install", "-y", "-q", "--no-install-recommends"]
        for command in (["apt-get", "update", "-q"], [*install, "chromium", "fonts-dejavu-core"]):
            subprocess.call(command, env=variables, stdout=subprocess.DEVNULL)
        if browser_path():
            return
    print("Installing Playwright's chromium", flush=True)
    subprocess.call([str(environment.python()), "-m", "playwright", "install", "chromium"])
    if not _playwright_has_one():
        raise ToolingError("no Chromium could be installed: install one and run again")


def browser_path() -> str | None:
    """Return the installed Chromium, or None where Playwright's own is to be used."""
    return next((path for name in BROWSERS if (path := shutil.which(name))), None)


def _playwright_has_one() -> bool:
    probe = (
        "import pathlib; from playwright.sync_api import sync_playwright as start\n"
        "with start() as p: raise SystemExit(not pathlib.Path(p.chromium.executable_path).exists())"
    )
    return subprocess.call([str(environment.python()), "-c", probe]) == 0


def _run(name: str, command: list[str]) -> bool:
    """Run one check in the project's root; returns whether it failed."""
    print(f"--- {name}: {' '.join(command[1:])}", flush=True)
    started = time.monotonic()
    failed = subprocess.call(command, cwd=ROOT) != 0
    print(
        f"--- {name} {'FAILED' if failed else 'ok'}, {time.monotonic() - started:.0f} s", flush=True
    )
    return failed
