"""One video from one prompt through a real ComfyUI, and a ComfyUI left open for trying things."""

from __future__ import annotations

import json
import re
import subprocess
import time
import webbrowser
from pathlib import Path
from uuid import uuid4

from . import comfyui, environment
from .client import Client, NodeError, RunResult, Workflow
from .environment import CACHE, ROOT, ToolingError
from .progress import Bar, Listener

WORKFLOW = ROOT / "workflows" / "api" / "text_to_video_nano.json"
BASE = CACHE / "base"


def make_video(prompt: str, seed: int, output: Path | None = None) -> tuple[Path, Path]:
    """Set everything up, make one video, stop the server.

    Args:
        prompt: What the video shows.
        seed: Seed of the noise, 0 or more.
        output: Folder for the results, outputs/ of the project by default.

    Returns:
        The .mp4 and its contact sheet, a .png.

    Raises:
        ToolingError: If anything on the way fails.
    """
    environment.ensure("demo")
    workflow = load_workflow(WORKFLOW, prompt=prompt, seed=seed)
    print("Starting ComfyUI", flush=True)
    with comfyui.Server(BASE) as server:
        print(f'Making "{prompt}" (seed {seed})', flush=True)
        started = time.monotonic()
        result = run_with_progress(server.client, workflow)
        print(f"Done in {time.monotonic() - started:.1f} s", flush=True)
        video = _save_video(server.client, result, output or ROOT / "outputs", prompt, seed)
    sheet = video.with_suffix(".png")
    _write_contact_sheet(video, sheet)
    print(f"Video:         {video}\nContact sheet: {sheet}", flush=True)
    return video, sheet


def serve(port: int, *, open_page: bool = True) -> None:
    """Set everything up and keep a ComfyUI with the pack running until Ctrl-C."""
    environment.ensure("demo")
    print("Starting ComfyUI", flush=True)
    with comfyui.Server(BASE, port=port) as server:
        print(
            f"ComfyUI is at {server.url}\n"
            f"Workflows: menu Workflow > Browse Templates > {comfyui.PACK}\n"
            f"Model folders: {server.base / 'models'}\nCtrl-C stops it.",
            flush=True,
        )
        if open_page:
            webbrowser.open(server.url)
        while server.running():
            time.sleep(0.5)
        raise ToolingError(f"ComfyUI ended by itself: see {server.log_path}")


def load_workflow(path: Path, *, prompt: str, seed: int) -> Workflow:
    """Read an API-form workflow and put in a prompt and a seed.

    The prompt goes to the node that feeds an input named `positive`, the seed to every seed widget.
    """
    workflow: Workflow = json.loads(path.read_text(encoding="utf-8"))
    encoders = {
        node["inputs"]["positive"][0]
        for node in workflow.values()
        if isinstance(node["inputs"].get("positive"), list)
    }
    texts = [
        (node_id, name)
        for node_id in encoders
        for name in ("prompt", "text")
        if isinstance(workflow[node_id]["inputs"].get(name), str)
    ]
    if len(texts) != 1:
        raise ToolingError(f"{path.name} has {len(texts)} prompt inputs, expected one")
    node_id, name = texts[0]
    workflow[node_id]["inputs"][name] = prompt
    for node in workflow.values():
        for name in ("seed", "noise_seed"):
            if isinstance(node["inputs"].get(name), int):
                node["inputs"][name] = seed
    return workflow


def run_with_progress(client: Client, workflow: Workflow) -> RunResult:
    """Queue a workflow and draw its progress until it ends.

    Raises:
        ToolingError: If a node fails; the message is the node's.
    """
    titles = {
        node_id: node.get("_meta", {}).get("title") or node["class_type"]
        for node_id, node in workflow.items()
    }
    client_id = uuid4().hex
    try:
        with Listener(client.url, client_id) as listener:
            prompt_id = client.queue(workflow, client_id=client_id)
            Bar(titles).follow(listener, prompt_id)
        return client.wait(prompt_id)
    except NodeError as error:
        raise ToolingError(str(error)) from error


def _save_video(client: Client, result: RunResult, folder: Path, prompt: str, seed: int) -> Path:
    files = [file for file in result.files() if file.filename.endswith(".mp4")]
    if not files:
        raise ToolingError("the workflow ended without an .mp4")
    folder.mkdir(parents=True, exist_ok=True)
    words = re.sub(r"\W+", "_", prompt).strip("_").lower()[:60] or "video"
    path = folder / f"{words}_{seed}.mp4"
    path.write_bytes(client.download(files[0]))
    return path


def _write_contact_sheet(video: Path, sheet: Path) -> None:
    """Done by the project's own code in `.venv`: this script has no image library."""
    code = (
        "import sys; from kandinsky_core.video import read_video, write_contact_sheet; "
        "write_contact_sheet(sys.argv[2], read_video(sys.argv[1]).frames)"
    )
    command = [str(environment.python()), "-c", code, str(video), str(sheet)]
    if subprocess.call(command, cwd=ROOT) != 0:
        raise ToolingError(f"the contact sheet of {video} could not be written")
