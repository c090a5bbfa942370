"""A preset and a list of prompts drive a workflow in a real server."""

from __future__ import annotations

import json
import urllib.error

import pytest

from kandinsky_core.video import read_metadata
from tooling.environment import ROOT

ROUTE = "/kandinsky5/count_prompts"
TEXT_TO_IMAGE = ROOT / "workflows" / "api" / "text_to_image_nano.json"


def test_a_preset_and_a_list_of_prompts_write_a_file_for_each(comfy, tmp_path):
    workflow = json.loads(TEXT_TO_IMAGE.read_text(encoding="utf-8"))
    workflow["10"] = {
        "class_type": "K5_Preset",
        "inputs": {"preset": "nano image", "orientation": "auto"},
    }
    workflow["11"] = {
        "class_type": "K5_PromptList",
        "inputs": {
            "text": "a red circle\na blue square | seed=77 steps=2",
            "file": "(none)",
            "split": "auto",
            "seed": 6,
            "seed_step": 1,
            "start": 1,
            "count": 0,
        },
    }
    workflow["12"] = {
        "class_type": "K5_Settings",
        "inputs": {"model": ["1", 0], "steps": ["11", 3], "shift": ["10", 2]},
    }
    workflow["1"]["inputs"]["model_name"] = ["10", 8]
    workflow["4"]["inputs"] |= {"text": ["11", 0], "task": ["10", 9]}
    workflow["6"]["inputs"] |= {"width": ["10", 3], "height": ["10", 4], "length": ["10", 5]}
    workflow["7"]["inputs"] |= {"model": ["12", 7], "steps": ["12", 0], "seed": ["11", 1]}
    workflow["9"]["inputs"]["filename_prefix"] = ["11", 2]
    files = comfy.run(workflow).files()
    assert [file.filename for file in files] == [
        "001_a_red_circle_seed6_00001_.png",
        "002_a_blue_square_seed77_00001_.png",
    ]
    for file in files:
        path = tmp_path / file.filename
        path.write_bytes(comfy.download(file))
        kept = json.loads(read_metadata(path)["prompt"])
        assert {key: node["inputs"] for key, node in kept.items()} == {
            key: node["inputs"] for key, node in workflow.items()
        }


def test_the_page_learns_how_many_prompts_there_are(comfy, comfy_server):
    (comfy_server.base / "input" / "more.txt").write_text("a star\n---\na square\n")
    given = {"text": "a red circle\n# none\na blue square", "file": "more.txt", "split": "auto"}
    assert comfy.post(ROUTE, given) == {"count": 4}
    assert comfy.post(ROUTE, given | {"file": "(none)"}) == {"count": 2}


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ({"text": "", "file": "(none)", "split": "auto"}, "text: expected at least one prompt"),
        ({"text": "a", "file": "../x.txt", "split": "auto"}, "file: there is no file '../x.txt'"),
        ({"text": 7, "file": "(none)", "split": "auto"}, "expected an object with texts"),
        (["a"], "expected an object with texts"),
    ],
)
def test_a_wrong_list_is_answered_with_one_sentence(comfy, body, words):
    with pytest.raises(urllib.error.HTTPError) as raised:
        comfy.post(ROUTE, body)
    assert raised.value.code == 400
    assert words in json.loads(raised.value.read())["error"]
