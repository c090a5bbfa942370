"""A real Chromium on the page of the real server, with everything off this machine blocked."""

from __future__ import annotations

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
READY_MS = 60_000


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


def _only_this_machine(route):
    if urlsplit(route.request.url).hostname in ("127.0.0.1", None):
        route.continue_()
    else:
        route.abort()
