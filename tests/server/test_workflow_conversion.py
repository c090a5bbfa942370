"""Converted workflows run to the end in a real ComfyUI, and its route converts."""

from __future__ import annotations

import json
import urllib.error

import pytest

from kandinsky_core.workflows import convert_workflow

ROUTE = "/kandinsky5/convert_workflow"
WORKFLOWS = {
    "kandinsky5_lite_T2V": ".webp",
    "kandinsky5_lite_I2V": ".webp",
    "kandinsky5_lite_T2I": ".png",
    "kandinsky5_lite_I2I": ".png",
    "small_T2V": ".webp",
    "small_I2V": ".webp",
    "small_T2I": ".png",
    "small_I2I": ".png",
    "video_kandinsky5_t2v": ".mp4",
    "video_kandinsky5_i2v": ".mp4",
    "image_kandinsky5_t2i": ".png",
}


@pytest.fixture
def queue_converted(comfy, foreign_workflow, to_api):
    """Convert a workflow by name, with nano in place of its files, and run it."""

    def run(name):
        known = comfy.object_info()
        workflow, _ = convert_workflow(foreign_workflow(name), nano=True)
        missing = {node["type"] for node in workflow["nodes"]} - set(known) - {"MarkdownNote"}
        assert not missing
        return comfy.run(to_api(workflow, lambda node_type: known[node_type]["input"]))

    return run


@pytest.mark.parametrize("name", WORKFLOWS)
def test_converted_workflow_runs_with_nano(comfy, queue_converted, name):
    (file,) = queue_converted(name).files()
    assert file.filename.endswith(WORKFLOWS[name])
    assert comfy.download(file)


@pytest.mark.parametrize("name", ["kandinsky5_lite_T2V", "small_T2V"])
def test_route_converts_as_the_command_does(comfy, foreign_workflow, name):
    document = foreign_workflow(name)
    answer = comfy.post(ROUTE, {"workflow": document})
    workflow, report = convert_workflow(document)
    assert answer == {"workflow": workflow, "report": report.to_dict()}


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ([], 'the key "workflow"'),
        ({"workflow": []}, "expected a ComfyUI workflow"),
        ({"workflow": {"1": {"class_type": "SaveImage", "inputs": {}}}}, "no Kandinsky 5 node"),
    ],
)
def test_route_refuses_in_one_sentence(comfy, body, words):
    with pytest.raises(urllib.error.HTTPError) as refused:
        comfy.post(ROUTE, body)
    assert refused.value.code == 400
    assert words in json.loads(refused.value.read())["error"]
