"""A saved file dropped on the canvas opens the workflow that made it."""

from __future__ import annotations

import base64
import json

import numpy as np
import pytest

from kandinsky_core.video import read_metadata, write_image
from tooling.client import OutputFile
from tooling.environment import ROOT

PROMPT = "a green square on a navy background"
VALUES = {"seed": 123456789012345, "control_after_generate": "fixed", "steps": 3}
DROP = """([name, type, data]) => {
    const bytes = Uint8Array.from(atob(data), (each) => each.charCodeAt(0));
    const dataTransfer = new DataTransfer();
    dataTransfer.items.add(new File([bytes], name, { type }));
    const options = { dataTransfer, bubbles: true, cancelable: true };
    document.dispatchEvent(new DragEvent('drop', options));
}"""
GRAPH = """() => {
    const { nodes, links } = window.app.graph.serialize();
    return {
        nodes: nodes.map((node) => [node.id, node.type, node.widgets_values ?? []]).sort(),
        links: links.map((link) => link.slice(1)).sort(),
    };
}"""


@pytest.fixture
def drop(page):
    """Drop a file on the page, as a creator does from a folder."""

    def call(path, kind):
        data = base64.b64encode(path.read_bytes()).decode()
        page.evaluate(DROP, [path.name, kind, data])

    return call


@pytest.mark.parametrize(
    ("stem", "kind"), [("text_to_image_nano", "image/png"), ("text_to_video_nano", "video/mp4")]
)
def test_a_dropped_file_brings_back_the_graph_with_its_values(
    page, comfy, open_file, set_widgets, wait_for_queue, drop, tmp_path, stem, kind
):
    open_file(ROOT / "workflows" / f"{stem}.json")
    set_widgets("K5_TextEncode", {"text": PROMPT})
    set_widgets("K5_Sampler", VALUES | ({"steps": 0} if kind == "video/mp4" else {}))
    before = page.evaluate(GRAPH)
    page.evaluate("() => window.app.queuePrompt(0)")
    (run,) = wait_for_queue(1)
    (saved,) = (
        item
        for shown in run["outputs"].values()
        for items in shown.values()
        for item in items
        if isinstance(item, dict)
    )
    path = tmp_path / saved["filename"]
    path.write_bytes(
        comfy.download(OutputFile("", saved["filename"], saved["subfolder"], saved["type"]))
    )
    page.evaluate("() => window.app.graph.clear()")
    assert page.evaluate(GRAPH)["nodes"] == []
    drop(path, kind)
    count = len(before["nodes"])
    page.wait_for_function("(n) => window.app.graph.nodes.length === n", arg=count)
    assert page.evaluate(GRAPH) == before

    # what the zeros of the graph stood for
    (sampled,) = json.loads(read_metadata(path)["kandinsky5"])["K5_Sampler"]
    assert sampled == {
        "prompt": PROMPT,
        "negative_prompt": "",
        "checkpoint": "transformer.safetensors",
        "seed": VALUES["seed"],
        "steps": 16 if kind == "video/mp4" else 3,
        "cfg": 4.0,
        "shift": 3.0,
        "denoise": 1.0,
        "width": 128,
        "height": 128,
        "length": 17 if kind == "video/mp4" else 1,
    }


def test_a_file_without_a_workflow_says_so_and_changes_nothing(page, open_file, drop, tmp_path):
    open_file(ROOT / "workflows" / "text_to_image_nano.json")
    before = page.evaluate(GRAPH)
    path = tmp_path / "plain.png"
    write_image(path, np.zeros((16, 16, 3), np.uint8))
    drop(path, "image/png")
    toast = page.locator(".p-toast-message").filter(has_text="plain.png")
    toast.last.wait_for()
    assert "Unable to find workflow" in toast.last.inner_text()
    assert page.evaluate(GRAPH) == before
