"""The command line on the bundled model: what a run reads, and what it makes of given frames."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from kandinsky_core.__main__ import main
from kandinsky_core.generate import request
from kandinsky_core.training.world import heldout_captions, render
from kandinsky_core.video import read_metadata, read_video, write_image, write_video
from kandinsky_core.weights import header

Run = Callable[..., int]
SIZE = 128
SCENES = [question.scene for question in heldout_captions(5, task="i2v")[4:1:-2]]
"""One object that moves to the left, and one that moves down."""
SAME_DB, LAST_DB = 24, 18
"""A frame that went through the VAE and the codec is nearer to its own picture than this, and
farther from others. A last frame is decoded after what two steps made, so it comes less near."""


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Run `generate` in two steps, in a folder of its own."""
    monkeypatch.chdir(tmp_path)

    def generate(*options: object, prompt: str = "a red circle moves to the right") -> int:
        return main(["generate", prompt, "--steps", "2", *map(str, options)])

    return generate


def counting(calls: Counter[str], name: Callable[..., str], function: Callable) -> Callable:
    """Return a function that counts its calls by name."""

    def counted(*args: object, **kwargs: object) -> object:
        calls[name(*args)] += 1
        return function(*args, **kwargs)

    return counted


def test_a_run_reads_each_header_once_and_settles_once(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    headers: Counter[str] = Counter()
    read = counting(headers, lambda path: path.name, header._read_file_header)
    monkeypatch.setattr(header, "_read_file_header", read)
    settled: Counter[str] = Counter()
    settle = counting(settled, lambda _, typed, *__: typed.prompt, request.settle_typed)
    monkeypatch.setattr(request, "settle_typed", settle)
    assert run("--task", "t2i", prompt="a red circle") == 0
    parts = ("transformer", "text_encoder", "vae")
    assert headers == {f"{part}.safetensors": 1 for part in parts}
    assert settled == {"a red circle": 1}


def decibels(a: np.ndarray, b: np.ndarray) -> float:
    """Peak signal-to-noise ratio of bytes."""
    error = np.square(a.astype(float) - b.astype(float)).mean()
    return 10 * np.log10(255**2 / max(error, 1e-9))


@pytest.fixture
def clip(tmp_path: Path) -> np.ndarray:
    """Frames of a video `clip.mp4`, as it reads."""
    pytest.importorskip("av")
    write_video(tmp_path / "clip.mp4", render(SCENES[0], SIZE, 13))
    return read_video(tmp_path / "clip.mp4").frames


def test_an_extended_clip_begins_with_the_clip(
    run: Run, tmp_path: Path, clip: np.ndarray, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ("--extend", "clip.mp4", "--overlap", 5, "--frames", 9, "--output", "longer.mp4")
    assert run(*options) == 0
    assert "frames a second" not in capsys.readouterr().err
    made = read_video(tmp_path / "longer.mp4").frames
    assert made.shape == (13 - 5 + 9, SIZE, SIZE, 3)
    assert min(map(decibels, made[:8], clip[:8])) > 40  # only the codec lies between
    # what is repeated went through the VAE too, each frame in its own place
    assert max(map(decibels, clip[1:], clip)) < SAME_DB < min(map(decibels, made[8:13], clip[8:]))
    told = read_metadata(tmp_path / "longer.mp4")
    expected = {"task": "i2v", "extend": "clip.mp4", "overlap": "5", "frames": "9"}
    assert expected.items() <= told.items()
    assert "image" not in told


def test_a_clip_leads_from_one_image_to_another(run: Run, tmp_path: Path) -> None:
    pytest.importorskip("av")
    ends = [render(scene, SIZE, 1)[0] for scene in SCENES]
    for name, end in zip(("a.png", "b.png"), ends, strict=True):
        write_image(tmp_path / name, end)
    options = ("--image", "a.png", "--last-frame", "b.png", "--frames", 9, "--output", "clip.mp4")
    assert run(*options) == 0
    made = read_video(tmp_path / "clip.mp4").frames
    assert made.shape == (9, SIZE, SIZE, 3)
    assert decibels(made[0], ends[0]) > SAME_DB > decibels(made[0], ends[1])
    assert decibels(made[-1], ends[1]) > LAST_DB > decibels(made[-1], ends[0])
    told = read_metadata(tmp_path / "clip.mp4")
    assert {"image": "a.png", "last_frame": "b.png"}.items() <= told.items()
    assert "overlap" not in told


def test_a_list_extends_one_clip_in_several_ways(
    tmp_path: Path, clip: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "list.txt").write_text("a red circle | seed=1\na red circle | seed=2\n")
    options = ["generate", "--prompts", "list.txt", "--extend", "clip.mp4", "--frames", "5"]
    # an overlap of 1 is what it is anyway, other guidance is another job
    for more, count in (((), 2), (("--overlap", "1"), 2), (("--cfg", "2"), 4)):
        assert main([*options, "--steps", "1", *more]) == 0
        assert len(list((tmp_path / "outputs").iterdir())) == count
    for path in (tmp_path / "outputs").iterdir():
        made = read_video(path).frames
        assert len(made) == 12 + 5
        assert min(map(decibels, made[:12], clip[:12])) > 40


def test_a_clip_of_another_speed_is_noted(
    run: Run, tmp_path: Path, clip: np.ndarray, capsys: pytest.CaptureFixture[str]
) -> None:
    write_video(tmp_path / "slow.mp4", clip, fps=12)
    assert run("--extend", "slow.mp4", "--frames", 5, "--steps", 1) == 0
    assert "note: slow.mp4 has 12 frames a second, and the result plays at 24" in (
        capsys.readouterr().err
    )


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--extend", "nothing.mp4"], "nothing.mp4 does not exist"),
        (["--extend", "text.mp4"], "text.mp4 cannot be decoded"),
        (["--extend", "odd.mp4"], "clip to extend: size 64x70 .* nearest that fit: 64 and 80"),
        (["--extend", "odd.mp4", "--task", "t2i"], "task t2i takes no clip to extend"),
        (["--extend", "clip.mp4", "--task", "t2v"], "task t2v takes no clip to extend"),
        (["--extend", "clip.mp4", "--image", "a.png"], "image is given beside the clip to extend"),
        (["--extend", "clip.mp4", "--overlap", "13"], "13 frames .* the clip has 13"),
        (["--extend", "clip.mp4", "--overlap", "0"], "overlap: .* must be 4k"),
        (["--extend", "clip.mp4", "--overlap", "9", "--frames", "9"], "choose 13 or more"),
        (["--extend", "clip.mp4", "--height", "64", "--width", "64"], "is 128x128 and 64x64"),
        (["--extend", "clip.mp4", "--model", "nano-edit"], "i2v is not what this model"),
        (["--overlap", "5"], "--overlap 5 is of the video to go on from"),
        (["--last-frame", "a.png"], "a last frame is given without a first one"),
        (["--last-frame", "nothing.png", "--image", "a.png"], "nothing.png does not exist"),
        (["--last-frame", "a.png", "--image", "a.png", "--frames", "5"], "choose 9 or more"),
        (["--last-frame", "a.png", "--image", "a.png", "--task", "t2v"], "takes no last frame"),
    ],
)
def test_frames_that_cannot_be_given_are_one_sentence(
    run: Run,
    tmp_path: Path,
    clip: np.ndarray,
    capsys: pytest.CaptureFixture[str],
    options: list[str],
    words: str,
) -> None:
    write_video(tmp_path / "odd.mp4", clip[:, :64, :70])
    write_image(tmp_path / "a.png", clip[0])
    (tmp_path / "text.mp4").write_text("not a video")
    before = set(tmp_path.iterdir())
    assert run(*options) == 1
    captured = capsys.readouterr()
    assert re.fullmatch(f"error: .*{words}.*\n", captured.err), captured.err
    assert captured.out == ""
    assert set(tmp_path.iterdir()) == before
