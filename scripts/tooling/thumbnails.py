"""Pictures of the workflows for ComfyUI's template browser, made by running them on nano."""

from __future__ import annotations

import json
import shutil
import subprocess
import tempfile
from pathlib import Path

from . import comfyui, environment
from .demo import BASE, load_workflow, run_with_progress
from .environment import ROOT, ToolingError

FOLDER = ROOT / "workflows"
SIZE = 512
JOBS = {
    "text_to_video": "a red star moves to the right on a navy background",
    "text_to_image": "a yellow triangle on a navy background",
    "image_to_video": "a red star moves to the right on a navy background",
}
"""Workflow -> prompt. The workflows for real checkpoints get the picture of their nano twin."""
AS_THEY_ARE = (
    ("image_edit", "image_edit_nano"),
    ("extend_nano",),
    ("first_last_frame_nano",),
    ("video_to_video_nano",),
)
"""Workflows that run with the prompts they are shipped with."""
AS_TEXT_TO_VIDEO = ("lora_nano", "preset_prompt_list_nano")
"""Workflows that need a file, or make several, and get its picture."""
GALLERY = ROOT / "assets" / "examples.png"
GALLERY_PROMPTS = (
    "a red star moves to the right",
    "a blue square rotates on a beige background",
    "зелёный треугольник движется вверх",
    "a yellow circle grows on a black background",
    "розовая звезда подпрыгивает",
)
"""Rows of the README's picture; seed 0, not chosen."""
GALLERY_FRAMES = 6

# The last frame of a video, or the image, enlarged; argv: source, picture.
_PICTURE = """
import sys, cv2
from kandinsky_core.video import read_video
source, picture, size = sys.argv[1], sys.argv[2], int(sys.argv[3])
frame = read_video(source).frames[-1] if source.endswith(".mp4") else cv2.imread(source)[..., ::-1]
large = cv2.resize(frame, (size, size), interpolation=cv2.INTER_CUBIC)
if not cv2.imwrite(picture, large[..., ::-1]):
    raise SystemExit(f"{picture} could not be written")
"""

# Frames of several videos, a row each; argv: picture, frames of a row, sources.
_GALLERY = """
import sys
import numpy as np
from kandinsky_core.video import read_video, write_contact_sheet
picture, count, sources = sys.argv[1], int(sys.argv[2]), sys.argv[3:]
rows = []
for source in sources:
    frames = read_video(source).frames
    rows.append(frames[np.linspace(0, len(frames) - 1, count).round().astype(int)])
frames = np.concatenate(rows)
write_contact_sheet(picture, frames, columns=count, max_frames=len(frames))
"""


def make_thumbnails(seed: int) -> None:
    """Run every nano workflow and write workflows/NAME.jpg beside it and beside its real twin.

    The README's picture is made as well, of five prompts.

    Raises:
        ToolingError: If a workflow fails or leaves no picture.
    """
    environment.ensure("demo")
    with comfyui.Server(BASE) as server, tempfile.TemporaryDirectory() as folder:
        first_frame = Path(folder) / "kandinsky5_first_frame.png"
        jobs = {
            (name, f"{name}_nano"): load_workflow(
                FOLDER / "api" / f"{name}_nano.json", prompt=prompt, seed=seed
            )
            for name, prompt in JOBS.items()
        }
        for stems in AS_THEY_ARE:
            text = (FOLDER / "api" / f"{stems[-1]}.json").read_text(encoding="utf-8")
            jobs[stems] = json.loads(text)
        for stems, workflow in jobs.items():
            for node in workflow.values():
                if node["class_type"] == "LoadImage":
                    node["inputs"]["image"] = server.client.upload(first_frame)
            files = run_with_progress(server.client, workflow).files()
            (file,) = (each for each in files if each.type == "output")
            result = Path(folder) / file.filename
            result.write_bytes(server.client.download(file))
            if not first_frame.exists():
                _convert(result, first_frame)
            for stem in stems:
                _convert(result, FOLDER / f"{stem}.jpg")
        for name in AS_TEXT_TO_VIDEO:
            shutil.copyfile(FOLDER / "text_to_video_nano.jpg", FOLDER / f"{name}.jpg")
        clips = []
        for index, prompt in enumerate(GALLERY_PROMPTS):
            workflow = load_workflow(
                FOLDER / "api" / "text_to_video_nano.json", prompt=prompt, seed=seed
            )
            (file,) = run_with_progress(server.client, workflow).files()
            clips.append(Path(folder) / f"gallery{index}.mp4")
            clips[-1].write_bytes(server.client.download(file))
        GALLERY.parent.mkdir(exist_ok=True)
        _run(_GALLERY, GALLERY, str(GALLERY), str(GALLERY_FRAMES), *map(str, clips))


def _convert(source: Path, picture: Path) -> None:
    _run(_PICTURE, picture, str(source), str(picture), str(SIZE))


def _run(program: str, picture: Path, *arguments: str) -> None:
    """Run a program of this file in the project's environment; it makes `picture`."""
    command = [str(environment.python()), "-c", program, *arguments]
    if subprocess.call(command, cwd=ROOT) != 0:
        raise ToolingError(f"{picture} could not be made")
