"""A real Chromium on the page of the real server, with everything off this machine blocked."""

from __future__ import annotations

import json
import time
from urllib.parse import urlsplit

import pytest
from playwright.sync_api import Error as PlaywrightError
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
CLEAR_MS = 20_000
RUN_SECONDS = 240
FAILED = pytest.StashKey[bool]()
DIALOG = ".p-dialog-mask"
EMPTY = """async () => {
    const { workflow, toast } = window.app.extensionManager;
    await window.app.loadGraphData({ nodes: [], links: [], version: 0.4 });
    for (const each of [...workflow.openWorkflows])
        if (each !== workflow.activeWorkflow) await workflow.closeWorkflow(each);
    toast.removeAll();
}"""


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


class SharedPage:
    """One page for the tests that only load graphs and run them: opening it takes longer than they.

    It is opened when it is first asked for, and anew after a test that failed on it.
    """

    def __init__(self, open_page):
        self._open = open_page
        self._page = None

    def empty(self):
        """Return the page with nothing in the graph, no message, no other tab and no error."""
        if self._page is not None and not self._clear():
            self.discard()
        if self._page is None:
            self._page = self._open()
        return self._page

    def _clear(self):
        """Empty the page that there is; returns whether it could be done."""
        try:
            for _ in range(3):  # dialogs tell of a node that failed or that the page does not know
                if self._page.locator(DIALOG).count():
                    self._page.keyboard.press("Escape")
                    self._page.wait_for_timeout(200)
            self._page.evaluate(EMPTY)
            self._page.wait_for_function(
                "(left) => window.app.graph.nodes.length === 0 && !document.querySelector(left)",
                arg=f"{DIALOG}, .p-toast-message, video",
                timeout=CLEAR_MS,
            )
        except PlaywrightError:
            return False
        self._page.console.errors.clear()
        return True

    def discard(self):
        """Close it."""
        if self._page is not None:
            self._page.context.close()
            self._page = None


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item):
    """Remember that a test failed, for what comes after it."""
    report = yield
    if report.failed:
        item.stash[FAILED] = True
    return report


@pytest.fixture(scope="session")
def open_page(chromium, comfy_server):
    """Open the web page with an empty profile and wait until the app is ready.

    `page.console.from_the_pack()` lists console errors of our files.
    """

    def call():
        comfy_server.client.post("/settings", {"Comfy.TutorialCompleted": True})
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
        return page

    return call


@pytest.fixture(scope="session")
def shared_page(open_page):
    """Yield the page that tests share."""
    shared = SharedPage(open_page)
    yield shared
    shared.discard()


@pytest.fixture
def page(shared_page, comfy, artifacts, request):  # noqa: ARG001  comfy looks after the server
    """Yield the shared page, emptied; a screenshot named after the test is kept in artifacts/."""
    page = shared_page.empty()
    yield page
    page.screenshot(path=artifacts / f"{request.node.name}.png")
    if FAILED in request.node.stash:
        shared_page.discard()


@pytest.fixture
def fresh_page(open_page, comfy, artifacts, request):  # noqa: ARG001
    """Yield a page of the test's own, for what it sees of the opening or leaves behind."""
    page = open_page()
    yield page
    page.screenshot(path=artifacts / f"{request.node.name}.png")
    page.context.close()


@pytest.fixture
def open_file(page):
    """Load a UI-form workflow from a file into the canvas and return it."""

    def load(path):
        workflow = json.loads(path.read_text(encoding="utf-8"))
        page.evaluate("(workflow) => window.app.loadGraphData(workflow)", workflow)
        count = len(workflow["nodes"])
        page.wait_for_function("(n) => window.app.graph.nodes.length === n", arg=count)
        return workflow

    return load


@pytest.fixture
def set_widgets(page):
    """Set widgets by name on the only node of a type."""

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
    """Wait until nothing is queued; return what /history holds of the last `count` runs."""

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
