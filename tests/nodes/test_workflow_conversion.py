"""Converted workflows in the host: every node exists and the host accepts every input."""

from __future__ import annotations

import asyncio
import shutil
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import pytest

from kandinsky_core.workflows import convert_workflow

WORKFLOWS = (
    *("kandinsky5_lite_T2V", "kandinsky5_lite_I2V", "kandinsky5_lite_T2I", "kandinsky5_lite_I2I"),
    *("small_T2V", "small_I2V", "small_T2I", "small_I2I"),
    *("video_kandinsky5_t2v", "video_kandinsky5_i2v", "image_kandinsky5_t2i"),
)
EXTRAS = ("nodes_video", "nodes_images", "nodes_primitive")


@pytest.fixture
def classes(host, monkeypatch):
    """Id -> node class of the host with the pack and the extra nodes that the workflows use."""
    # nodes_images asks for the server's class when it is imported; there is no server here
    server = SimpleNamespace(PromptServer=SimpleNamespace(instance=None))
    monkeypatch.setitem(sys.modules, "server", server)
    known = host.native.NODE_CLASS_MAPPINGS
    nodes = dict(host.pack)
    for name in EXTRAS:
        module = host.extra(name)
        nodes |= getattr(module, "NODE_CLASS_MAPPINGS", {})
        if hasattr(module, "comfy_entrypoint"):
            nodes |= {each.define_schema().node_id: each for each in extension_nodes(module)}
    for node_id, node in nodes.items():
        monkeypatch.setitem(known, node_id, node)
    return known


def extension_nodes(module):
    async def ask():
        return await (await module.comfy_entrypoint()).get_node_list()

    with ThreadPoolExecutor(1) as loop:  # the browser tests leave a loop running in this thread
        return loop.submit(asyncio.run, ask()).result()


@pytest.fixture
def validate(host):
    """Run the host's own check of a prompt; return what it says."""
    execution = host.module("execution")
    shutil.copy(host.path / "input" / "example.png", host.base / "input" / "example.png")

    def check(prompt):
        with ThreadPoolExecutor(1) as loop:
            coroutine = execution.validate_prompt("prompt", prompt, None)
            valid, error, outputs, node_errors = loop.submit(asyncio.run, coroutine).result()
        return valid, error, outputs, node_errors

    return check


@pytest.mark.parametrize("name", WORKFLOWS)
def test_host_accepts_what_the_converter_makes(foreign_workflow, to_api, classes, validate, name):
    workflow, _ = convert_workflow(foreign_workflow(name), nano=True)
    missing = {node["type"] for node in workflow["nodes"]} - set(classes) - {"MarkdownNote"}
    assert not missing
    prompt = to_api(workflow, lambda node_type: classes[node_type].INPUT_TYPES())
    valid, error, outputs, node_errors = validate(prompt)
    assert valid, error
    assert not node_errors
    assert len(outputs) == 1
    for node in prompt.values():
        spec = classes[node["class_type"]].INPUT_TYPES()
        assert set(node["inputs"]) <= {*spec["required"], *spec.get("optional", {})}


def test_host_refuses_a_node_it_lacks(foreign_workflow, to_api, classes, validate):
    # the same check does find a node that is missing
    workflow, _ = convert_workflow(foreign_workflow("image_kandinsky5_t2i"), nano=True)
    prompt = to_api(workflow, lambda node_type: classes[node_type].INPUT_TYPES())
    loader = next(key for key, node in prompt.items() if node["class_type"] == "K5_LoadVAE")
    prompt[loader]["class_type"] = "Kandinsky5LoadVAE"
    valid, error, *_ = validate(prompt)
    assert not valid
    assert "Kandinsky5LoadVAE does not exist" in error["message"]


def test_the_pack_loads_without_a_server(host):
    # the fixture loaded it so; adding routes has nothing to add to
    assert host.part("nodes.host").add_routes() is None


class Request:
    def __init__(self, body):
        self._body = body

    async def read(self):
        return self._body


def test_routes_work_beside_the_loop_that_serves_everything_else(host):
    routes = host.part("nodes.host.routes")
    threads = []

    def work(body):
        threads.append(threading.get_ident())
        return {"found": body}

    async def ask(body):
        threads.append(threading.get_ident())
        return await routes._answer(Request(body), work)

    with ThreadPoolExecutor(1) as loop:
        answer = loop.submit(asyncio.run, ask(b"[1]")).result()
        assert (answer.status, answer.text) == (200, '{"found": [1]}')
        assert threads[0] != threads[1]
        for body, words in ((b"[" * 100_000, "nested too deeply"), (b"{", "Expecting")):
            refused = loop.submit(asyncio.run, ask(body)).result()
            assert refused.status == 400
            assert words in refused.text
