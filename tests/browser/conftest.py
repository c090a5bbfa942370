"""A real Chromium on the page of the real server, with everything off this machine blocked."""

from __future__ import annotations

import json
import time
from urllib.parse import urlsplit

import pytest
from playwright.sync_api import sync_playwright

from tooling import checks
from tooling.comfyui import PACK

FLAGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
READY_MS = 180_000
RUN_SECONDS = 240


class Console:
    """Errors that the page reported, each with the address of the file it came from."""

    def __init__(self):
        self.errors: list[str] = []

    def watch(self, page):
        page.on("console", lambda entry: entry.type == "error" and self._add(entry))
        page.on("pageerror", lambda error: self.errors.append(f"{error}\n{error.stack or ''}"))

    def from_the_pack(self) -> list[str]:
        """Those that name one of our files or nodes."""
        return [text for text in self.errors if f"/{PACK}/" in text or "K5_" in text]

    def _add(self, entry):
        self.errors.append(f"{entry.text} ({entry.location.get('url', '')})")


@pytest.fixture(scope="session")
def chromium():
    """One browser for the whole run."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=checks.browser_path(), args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture
def page(chromium, comfy_server, comfy, artifacts, request):
    """The web page with the app ready and an empty profile.

    `page.console.from_the_pack()` lists console errors of our files. A screenshot named after the
    test is kept in artifacts/.
    """
    comfy.post("/settings", {"Comfy.TutorialCompleted": True})
    context = chromium.new_context(viewport={"width": 1600, "height": 1000})
    context.set_default_timeout(READY_MS)  # a busy machine takes its time
    context.route("**/*", _only_this_machine)
    page = context.new_page()
    page.console = Console()
    page.console.watch(page)
    page.goto(comfy_server.url)
    page.wait_for_function(
        "() => window.app?.graph && window.LiteGraph && window.app.extensionManager",
        timeout=READY_MS,
    )
    page.wait_for_function("() => !document.querySelector('.p-blockui-mask')", timeout=READY_MS)
    yield page
    page.screenshot(path=artifacts / f"{request.node.name}.png")
    context.close()


@pytest.fixture
def open_file(page):
    """Loads a UI-form workflow from a file into the canvas and returns it."""

    def load(path):
        workflow = json.loads(path.read_text(encoding="utf-8"))
        page.evaluate("(workflow) => window.app.loadGraphData(workflow)", workflow)
        count = len(workflow["nodes"])
        page.wait_for_function("(n) => window.app.graph.nodes.length === n", arg=count)
        return workflow

    return load


@pytest.fixture
def set_widgets(page):
    """Sets widgets by name on the only node of a type."""

    def call(node_type, values):
        page.evaluate(
            """([type, values]) => {
                const node = window.app.graph.nodes.find((each) => each.type === type);
                for (const [name, value] of Object.entries(values))
                    node.widgets.find((each) => each.name === name).value = value;
            }""",
            [node_type, values],
        )

    return call


@pytest.fixture
def wait_for_queue(comfy):
    """Waits until nothing is queued; returns what /history holds of the last `count` runs."""

    def call(count):
        deadline = time.monotonic() + RUN_SECONDS
        while any(comfy.get("/queue").values()):
            assert time.monotonic() < deadline, "the queue is not done"
            time.sleep(0.25)
        return list(comfy.get("/history").values())[-count:]

    return call


def _only_this_machine(route):
    if urlsplit(route.request.url).hostname in ("127.0.0.1", None):
        route.continue_()
    else:
        route.abort()
