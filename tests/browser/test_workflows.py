"""The shipped workflows in ComfyUI's web page, as a creator meets them.

`make test ARGS="tests/browser --export-workflows"` writes workflows/api/ anew: the API-form twins
are what the page makes of the UI-form files, never edited by hand.
"""

from __future__ import annotations

import json

import pytest

from tooling.comfyui import PACK
from tooling.environment import ROOT

FOLDER = ROOT / "workflows"
WORKFLOWS = sorted(FOLDER.glob("*.json"))
TEXT_TO_VIDEO = FOLDER / "text_to_video_nano.json"
RUN_MS = 120_000

by_name = pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)


def test_workflows_are_shipped_for_nano_and_for_real_checkpoints():
    names = [path.stem for path in WORKFLOWS]
    assert sum("nano" in name for name in names) >= 3
    assert sum("nano" not in name for name in names) >= 3
    for path in WORKFLOWS:
        assert path.with_suffix(".jpg").is_file(), f"{path.stem} has no thumbnail"


@by_name
def test_api_twin_is_what_the_page_exports(page, open_file, path, request):
    open_file(path)
    exported = page.evaluate("async () => (await window.app.graphToPrompt()).output")
    twin = FOLDER / "api" / path.name
    if request.config.getoption("--export-workflows"):
        twin.parent.mkdir(exist_ok=True)
        text = json.dumps(exported, indent=2, ensure_ascii=False)
        twin.write_text(text + "\n", encoding="utf-8")
    assert json.loads(twin.read_text(encoding="utf-8")) == exported


@by_name
def test_page_reads_every_widget_where_the_file_put_it(page, open_file, path):
    workflow = open_file(path)
    nodes = page.evaluate("() => window.app.graph.serialize().nodes")
    in_page = {node["id"]: node for node in nodes}
    known = page.evaluate("() => Object.keys(LiteGraph.registered_node_types)")
    for node in workflow["nodes"]:
        assert node["type"] in known or node["type"] in ("MarkdownNote", "Note")
        values = node.get("widgets_values") or []
        assert (in_page[node["id"]].get("widgets_values") or []) == values, node["type"]
    assert page.console.from_the_pack() == []


def test_creator_opens_a_template_presses_run_and_sees_the_video(page, artifacts):
    page.get_by_text("Templates", exact=True).first.click()
    page.get_by_text(PACK, exact=True).first.click()
    page.get_by_test_id(f"template-workflow-{TEXT_TO_VIDEO.stem}").click()
    count = len(json.loads(TEXT_TO_VIDEO.read_text(encoding="utf-8"))["nodes"])
    page.wait_for_function("(n) => window.app.graph.nodes.length === n", arg=count)
    page.screenshot(path=artifacts / f"{TEXT_TO_VIDEO.stem}_opened.png")

    page.get_by_role("button", name="Run", exact=True).first.click()
    page.wait_for_function(
        "() => [...document.querySelectorAll('video')].some("
        "video => video.readyState >= 2 && video.videoWidth > 0)",
        timeout=RUN_MS,
    )
    video = page.locator("video").first
    assert "/view?" in (video.get_attribute("src") or video.evaluate("v => v.currentSrc"))
    assert video.evaluate("v => v.duration") > 0.5
    page.screenshot(path=artifacts / f"{TEXT_TO_VIDEO.stem}_done.png")
    assert page.console.from_the_pack() == []


def test_creator_cancels_a_run_and_the_next_one_works(page, comfy, open_file):
    open_file(TEXT_TO_VIDEO)
    set_steps = """(steps) => {
        const node = window.app.graph.nodes.find((each) => each.type === 'K5_Settings');
        const widget = node.widgets.find((each) => each.name === 'steps');
        const before = widget.value;
        widget.value = steps;
        return before;
    }"""
    before = page.evaluate(set_steps, 900)
    run = page.get_by_role("button", name="Run", exact=True).first
    run.click()
    sampling = "() => window.app.graph.nodes.some(n => n.type === 'K5_Sampler' && n.progress > 0)"
    page.wait_for_function(sampling, timeout=RUN_MS)
    page.get_by_role("button", name="Cancel current run").first.click()
    page.wait_for_function(
        "async () => (await (await fetch('/queue')).json()).queue_running.length === 0",
        timeout=RUN_MS,
    )
    *_, last = comfy.get("/history").values()
    assert [name for name, _ in last["status"]["messages"]][-1] == "execution_interrupted"

    page.evaluate(set_steps, before)
    run.click()
    page.wait_for_function(
        "() => [...document.querySelectorAll('video')].some(v => v.readyState >= 2)",
        timeout=RUN_MS,
    )
    assert page.console.from_the_pack() == []
