"""The menu entry that converts the open workflow."""

from __future__ import annotations

import pytest

COMMAND = "Kandinsky5.ConvertWorkflow"
LABEL = "Convert Kandinsky 5 nodes"
TYPES = "() => window.app.graph.nodes.map((node) => node.type).sort()"
OFFICIAL = ["Kandinsky5Generate", "Kandinsky5LoadDiT", "expand_prompt"]


@pytest.fixture
def open_workflow(page):
    """Load a workflow whose nodes the page may not know."""

    def load(workflow):
        page.evaluate("(workflow) => window.app.loadGraphData(workflow)", workflow)
        count = len(workflow["nodes"])
        page.wait_for_function("(n) => window.app.graph.nodes.length === n", arg=count)
        page.keyboard.press("Escape")  # the page tells which nodes it lacks

    return load


def run_command(page):
    page.evaluate("(id) => window.app.extensionManager.command.execute(id)", COMMAND)


@pytest.mark.parametrize(
    ("name", "settings"),
    [("kandinsky5_lite_T2V", (903, 5, 50, 10)), ("small_T2V", (17, 4.5, 41, 8))],
)
def test_creator_converts_the_open_workflow_and_keeps_the_original(
    page, open_workflow, foreign_workflow, name, settings
):
    open_workflow(foreign_workflow(name))
    before = page.evaluate(TYPES)
    assert set(OFFICIAL) <= set(before)
    tabs = "() => window.app.extensionManager.workflow.openWorkflows.length"
    count = page.evaluate(tabs)
    run_command(page)
    page.wait_for_function("() => window.app.graph.nodes.some((n) => n.type === 'K5_Sampler')")
    after = set(page.evaluate(TYPES))
    known = set(page.evaluate("() => Object.keys(LiteGraph.registered_node_types)"))
    assert after <= known
    assert page.evaluate(tabs) == count + 1
    toast = page.locator(".p-toast-message").last
    toast.wait_for()
    assert "precision bfloat16 is not carried over" in toast.inner_text()
    sampler = page.evaluate(
        "() => window.app.graph.nodes.find((n) => n.type === 'K5_Sampler').widgets.map("
        "(widget) => [widget.name, widget.value])"
    )
    values = dict(sampler)
    assert (values["seed"], values["cfg"], values["steps"], values["shift"]) == settings
    assert page.console.from_the_pack() == []


def test_entry_is_in_the_menu_and_says_what_it_cannot_do(page, open_workflow):
    entry = page.evaluate(
        "(id) => window.app.extensionManager.command.commands.find((c) => c.id === id)?.label",
        COMMAND,
    )
    assert entry == LABEL
    open_workflow({"nodes": [], "links": [], "version": 0.4})
    run_command(page)
    toast = page.locator(".p-toast-message").last
    toast.wait_for()
    assert "has no Kandinsky 5 node" in toast.inner_text()
