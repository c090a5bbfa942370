"""The menu entry that queues a run for every prompt of a list."""

from __future__ import annotations

import json

import pytest

from kandinsky_core.video import read_metadata
from tooling.environment import ROOT

COMMAND = "Kandinsky5.QueuePrompts"
LABEL = "Queue Kandinsky 5 prompts one by one"
LIST = ROOT / "workflows" / "preset_prompt_list_nano.json"
NO_LIST = ROOT / "workflows" / "text_to_image_nano.json"
PROMPTS = """a red circle | width=128
a blue square | width=100
a green triangle | width=128 seed=77"""
"""The second has a width that no model takes."""
LINK_WIDTH = """() => {
    const find = (type) => window.app.graph.nodes.find((each) => each.type === type);
    const [list, empty] = [find('K5_PromptList'), find('K5_EmptyLatent')];
    const slot = (sockets) => sockets.findIndex((each) => each.name === 'width');
    list.connect(slot(list.outputs), empty, slot(empty.inputs));
}"""


@pytest.fixture
def queue_prompts(page):
    """Run the menu entry and wait until the page tells certain words."""

    def call(words):
        page.evaluate("(id) => window.app.extensionManager.command.execute(id)", COMMAND)
        toast = page.locator(".p-toast-message").filter(has_text=LABEL).filter(has_text=words)
        toast.last.wait_for()

    return call


def test_each_prompt_is_saved_and_a_failing_one_costs_only_itself(
    page, comfy_server, open_file, set_widgets, wait_for_queue, queue_prompts
):
    open_file(LIST)
    set_widgets("K5_Preset", {"preset": "nano image"})
    set_widgets("K5_PromptList", {"text": PROMPTS, "seed": 5})
    page.evaluate(LINK_WIDTH)
    queue_prompts("3 in the queue")
    runs = wait_for_queue(3)
    assert [run["status"]["status_str"] for run in runs] == ["success", "error", "success"]
    output = comfy_server.base / "output"
    first, third = output.glob("001_a_red_circle_seed5_*"), output.glob("003_a_green_*_seed77_*")
    files = [*first, *third]
    assert len(files) == 2
    assert not list(output.glob("002_a_blue_square*"))

    widgets = "() => window.app.graph.nodes.find((n) => n.type === 'K5_PromptList').widgets"
    values = dict(page.evaluate(f"{widgets}.map((widget) => [widget.name, widget.value])"))
    assert (values["start"], values["count"]) == (1, 0)
    for path, number, prompt, seed in zip(
        files, (1, 3), ("a red circle", "a green triangle"), (5, 77), strict=True
    ):
        texts = read_metadata(path)
        (sampled,) = json.loads(texts["kandinsky5"])["K5_Sampler"]
        assert (sampled["prompt"], sampled["seed"]) == (prompt, seed)
        nodes = json.loads(texts["workflow"])["nodes"]
        (kept,) = (node for node in nodes if node["type"] == "K5_PromptList")
        assert kept["widgets_values"][-2:] == [number, 1]
    assert page.console.from_the_pack() == []


def test_what_cannot_be_queued_is_one_sentence(
    page, open_file, set_widgets, queue_prompts, wait_for_queue
):
    menu = "(id) => window.app.extensionManager.command.commands.find((c) => c.id === id)?.label"
    assert page.evaluate(menu, COMMAND) == LABEL
    before = len(wait_for_queue(1000))
    open_file(NO_LIST)
    queue_prompts("has no Prompt List")
    open_file(LIST)
    set_widgets("K5_PromptList", {"text": "a circle\na square | sped=2"})
    queue_prompts("text: line 2: expected settings such as seed=7")
    set_widgets("K5_PromptList", {"text": "a circle", "start": 4})
    queue_prompts("start: expected at most 1")
    assert len(wait_for_queue(1000)) == before
