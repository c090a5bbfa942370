"""Fixtures that several folders share: a real ComfyUI server and where artefacts go."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tooling import comfyui, environment

ROOT = environment.ROOT
MARKED_FOLDERS = ("server", "browser")


def pytest_addoption(parser):
    parser.addoption(
        "--export-workflows",
        action="store_true",
        help="write workflows/api/ from what the page makes of workflows/",
    )


def pytest_collection_modifyitems(items):
    """Everything in tests/server and tests/browser carries the marker of that name."""
    for item in items:
        folder = item.path.relative_to(ROOT / "tests").parts[0]
        if folder in MARKED_FOLDERS:
            item.add_marker(folder)


@pytest.fixture(scope="session")
def artifacts() -> Path:
    """Folder whose files are kept after the run: logs, screenshots, videos."""
    folder = ROOT / "artifacts"
    folder.mkdir(exist_ok=True)
    return folder


@pytest.fixture(scope="session")
def comfy_server(tmp_path_factory, artifacts):
    """A real ComfyUI with the pack linked in, one for the whole run.

    `.base` is its folder (models/, input/, output/), `.log()` what it printed, `.url` the page.
    """
    with comfyui.Server(tmp_path_factory.mktemp("comfyui")) as server:
        yield server
    (artifacts / "comfyui.log").write_text(server.log(), encoding="utf-8")


@pytest.fixture
def comfy(comfy_server):
    """HTTP client of the server: `comfy.run(api_workflow) -> RunResult`, or raises NodeError.

    After each test the server must still be running.
    """
    yield comfy_server.client
    assert comfy_server.running(), f"the server died:\n{comfy_server.log()[-3000:]}"


@pytest.fixture(scope="session")
def pack_log_lines(comfy_server) -> list[str]:
    """Lines of the boot log that speak of the pack."""
    return [
        line
        for line in comfy_server.boot_log.splitlines()
        if re.search(rf"{comfyui.PACK}|kandinsky", line, re.IGNORECASE)
    ]
