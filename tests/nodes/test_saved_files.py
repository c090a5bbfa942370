"""Files that the native savers write carry the workflow, and `show` reads them."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest
import torch

from kandinsky_core.video import describe_texts, read_metadata
from tooling.environment import ROOT

WORKFLOW = json.loads((ROOT / "workflows" / "text_to_video_nano.json").read_text("utf-8"))
PROMPT = json.loads((ROOT / "workflows" / "api" / "text_to_video_nano.json").read_text("utf-8"))


@pytest.fixture
def save_video(host):
    """Save frames as the workflow's CreateVideo and SaveVideo do."""
    nodes = host.extra("nodes_video")

    def save(frames):
        (video,) = nodes.CreateVideo.execute(images=frames, fps=24.0).result
        hidden = SimpleNamespace(prompt=PROMPT, extra_pnginfo={"workflow": WORKFLOW})
        saver = type("Saver", (nodes.SaveVideo,), {"hidden": hidden})
        saved = saver.execute(video, "video/test", "auto", "auto").ui.as_dict()["images"][0]
        return host.base / "output" / saved["subfolder"] / saved["filename"]

    return save


def check(path):
    texts = read_metadata(path)
    assert json.loads(texts["workflow"]) == WORKFLOW
    assert json.loads(texts["prompt"]) == PROMPT
    shown = describe_texts(path)
    assert f"workflow: {len(WORKFLOW['nodes'])} nodes of ComfyUI" in shown
    assert f"prompt: {len(PROMPT)} nodes of ComfyUI" in shown


def test_a_video_carries_the_workflow(save_video):
    pytest.importorskip("av")
    check(save_video(torch.rand(5, 32, 32, 3)))


def test_an_image_carries_the_workflow(host):
    saved = host.native.SaveImage().save_images(
        torch.rand(1, 32, 32, 3), "test", prompt=PROMPT, extra_pnginfo={"workflow": WORKFLOW}
    )
    check(host.base / "output" / saved["ui"]["images"][0]["filename"])
