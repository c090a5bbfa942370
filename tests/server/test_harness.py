"""The harness itself, on native nodes: what it returns, what it raises, and that it stops."""

from __future__ import annotations

import pytest

from tooling import comfyui, demo
from tooling.client import NodeError
from tooling.environment import ToolingError


def picture(width=64, **more):
    return {
        "1": {
            "class_type": "EmptyImage",
            "inputs": {"width": width, "height": 32, "batch_size": 1, "color": 0xFF0000},
        },
        "2": {"class_type": "SaveImage", "inputs": {"images": ["1", 0], "filename_prefix": "h"}},
        **more,
    }


def test_run_returns_files_that_can_be_downloaded(comfy):
    result = comfy.run(picture())
    (file,) = result.files()
    assert file.node_id == "2"
    assert comfy.download(file).startswith(b"\x89PNG")


def test_refused_input_names_the_node(comfy):
    with pytest.raises(NodeError) as caught:
        comfy.run(picture(width=-1))
    assert (caught.value.node_id, caught.value.node_type) == ("1", "EmptyImage")
    assert "width" in caught.value.message


def test_failing_node_is_named_with_its_sentence(comfy, tmp_path):
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"no picture")
    name = comfy.upload(broken)
    with pytest.raises(NodeError) as caught:
        comfy.run(
            picture(
                **{
                    "3": {"class_type": "LoadImage", "inputs": {"image": name}},
                    "4": {"class_type": "PreviewImage", "inputs": {"images": ["3", 0]}},
                }
            )
        )
    assert caught.value.node_type == "LoadImage"
    assert "identify image" in caught.value.message


def test_progress_is_followed_to_the_end(comfy, capsys):
    result = demo.run_with_progress(comfy, picture(width=65))
    assert [file.node_id for file in result.files()] == ["2"]
    drawn = capsys.readouterr().out
    assert "EmptyImage" in drawn and "SaveImage" in drawn


def test_server_that_cannot_start_says_why(tmp_path):
    server = comfyui.Server(tmp_path, arguments=("--no-such-option",))
    with pytest.raises(ToolingError, match="--no-such-option"):
        server.start()
    assert not server.running()
