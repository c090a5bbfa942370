"""MagCache from the command line, on files of an untrained nano model."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from kandinsky_core.__main__ import main
from kandinsky_core.checkpoint import describe_metadata, save_checkpoint
from kandinsky_core.family.config import DiTConfig, NanoTextConfig, VideoVAEConfig
from kandinsky_core.family.variants import VARIANTS
from kandinsky_core.models import CrossDiT, VideoVAE
from kandinsky_core.text import NanoTextEncoder, save_nano_text_encoder
from kandinsky_core.video import read_image, read_image_metadata, write_image

DIT = DiTConfig(48, 96, 32, 1, 1, (4, 6, 6), latent_channels=4, text_dim=16, pooled_dim=16)
VAE = VideoVAEConfig(
    (8, 8, 8), 1, latent_channels=4, norm_num_groups=4, patch_size=4, mid_block_attention=False
)
WORDS = ("a", "circle", "red")
Run = Callable[..., int]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with the three files of a tiny nano model."""
    folder = tmp_path_factory.mktemp("model")
    torch.manual_seed(0)
    transformer = CrossDiT(DIT)
    for param in transformer.parameters():
        torch.nn.init.normal_(param, std=0.1)
    metadata = describe_metadata(DIT, variant="nano", task="t2v", stage="pretrain")
    save_checkpoint(folder / "transformer.safetensors", transformer.state_dict(), metadata)
    save_checkpoint(folder / "vae.safetensors", VideoVAE(VAE).state_dict(), describe_metadata(VAE))
    text = NanoTextEncoder(NanoTextConfig(3 + len(WORDS), 16, 1, 2, 8), WORDS)
    save_nano_text_encoder(folder / "text_encoder.safetensors", text)
    return folder


@pytest.fixture
def run(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Run a command on the tiny model in a folder of its own."""
    monkeypatch.chdir(tmp_path)

    def command(verb: str, *options: object, prompt: str | None = "a red circle") -> int:
        parts = ("--vae", model / "vae.safetensors")
        parts += ("--text-encoder", model / "text_encoder.safetensors")
        small = ("--height", 16, "--width", 32, "--frames", 5, "--steps", 8)
        start = (verb, *filter(None, (prompt,)), "--model", model / "transformer.safetensors")
        return main([str(each) for each in (*start, *parts, *small, *options)])

    return command


def lite_header(path: Path) -> Path:
    """Return a file with the header of a Lite video model; its weights are a hole."""
    header: dict[str, object] = {}
    end = 0
    network = CrossDiT(VARIANTS["video_lite"], device="meta")
    for name, tensor in network.state_dict().items():
        start, end = end, end + 2 * tensor.numel()
        header[name] = {"dtype": "BF16", "shape": list(tensor.shape), "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        file.truncate(8 + len(text) + end)
    return path


def calm(path: Path) -> Path:
    """Ratios that allow two skips in a row."""
    described = {"format": "kandinsky_core.magcache_ratios", "version": 1}
    described |= {"cond": [1.0] * 7, "uncond": [1.0] * 7}
    described |= {"measured_on": {"release": "nano t2v pretrain"}}
    path.write_text(json.dumps(described))
    return path


def test_a_calibrated_model_skips_and_says_so(
    run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    image = ("--task", "t2i", "--output")
    assert run("calibrate", "--task", "t2i") == 0
    printed = capsys.readouterr()
    assert printed.out == "magcache_ratios.json\n"
    assert "--magcache --magcache-ratios magcache_ratios.json" in printed.err
    described = json.loads((tmp_path / "magcache_ratios.json").read_text())
    assert len(described["cond"]) == len(described["uncond"]) == 7
    assert described["measured_on"]["release"] == "nano t2v pretrain"
    assert described["measured_on"]["size"] == [16, 32]
    assert described["measured_on"]["steps"] == 8

    use = ("--magcache-ratios", "magcache_ratios.json", "--magcache")
    assert run("generate", *image, "plain.png") == 0
    assert "MagCache" not in capsys.readouterr().err
    assert run("generate", *image, "zero.png", *use, "0") == 0
    assert "MagCache at threshold 0: 0 of 16 runs" in capsys.readouterr().err
    assert run("generate", *image, "fast.png", *use, "1e9") == 0
    printed = capsys.readouterr()
    assert printed.out == "fast.png\n"
    assert "note:" not in printed.err
    line = printed.err.splitlines()[-1]
    # of 8 steps with two calls each, 3 calls are retained; then 2 of 3 steps are skipped
    assert line == (
        "MagCache at threshold 1e+09: 9 of 16 runs of the blocks skipped (prompt 4 of 8, "
        "negative prompt 5 of 8), by the ratios of magcache_ratios.json"
    )
    plain, zero, fast = (read_image(tmp_path / f"{name}.png") for name in ("plain", "zero", "fast"))
    assert np.array_equal(plain, zero)
    assert not np.array_equal(plain, fast)
    assert read_image_metadata(tmp_path / "fast.png")["magcache"] == "1e+09, magcache_ratios.json"


def test_the_threshold_is_the_reference_s_unless_given(
    run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    calm(tmp_path / "calm.json")
    image = ("--task", "t2i", "--magcache-ratios", "calm.json")
    for options, threshold in (((), "0.12"), (("--magcache",), "0.12"), (("--magcache", 1), "1")):
        assert run("generate", *image, *options) == 0
        assert f"MagCache at threshold {threshold}: 9 of 16" in capsys.readouterr().err


def test_an_image_to_video_run_skips_too(
    run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("av")
    write_image(tmp_path / "ball.png", np.full((16, 32, 3), 99, np.uint8))
    options = ("--image", "ball.png", "--magcache-ratios", calm(tmp_path / "calm.json"))
    assert run("generate", *options) == 0
    assert "9 of 16 runs" in capsys.readouterr().err
    assert run("calibrate", "--image", "ball.png", "--cfg", 1) == 0
    described = json.loads((tmp_path / "magcache_ratios.json").read_text())
    assert described["measured_on"]["task"] == "i2v"
    assert described["uncond"] is None


def test_ratios_of_another_model_are_used_with_a_note(
    run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = calm(tmp_path / "calm.json")
    path.write_text(path.read_text().replace("nano t2v", "video_lite i2v 5 s"))
    assert run("generate", "--task", "t2i", "--magcache-ratios", path) == 0
    expected = "note: calm.json was measured on video_lite i2v 5 s pretrain, not on nano t2v"
    assert expected in capsys.readouterr().err


def test_ratios_of_another_size_or_task_are_named_once(
    run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = calm(tmp_path / "calm.json")
    described = json.loads(path.read_text())
    described["measured_on"] |= {"size": [256, 256], "task": "t2v"}
    path.write_text(json.dumps(described))
    assert run("generate", "--task", "t2i", "--magcache-ratios", path) == 0
    (note,) = [line for line in capsys.readouterr().err.splitlines() if "note:" in line]
    assert "at 256x256, not at sizes around 128x128; for t2v, not for t2i" in note
    (tmp_path / "list.txt").write_text("a circle\na red circle\n")
    options = ("--task", "t2i", "--prompts", "list.txt", "--size-class", "large")
    assert run("generate", *options, "--magcache-ratios", path, prompt=None) == 0
    (note,) = [line for line in capsys.readouterr().err.splitlines() if "note:" in line]
    assert "calm.json was measured for t2v, not for t2i" in note


@pytest.mark.parametrize(
    ("verb", "options", "words"),
    [
        ("generate", ["--magcache"], "no MagCache ratios were published for nano t2v pretrain"),
        ("generate", ["--magcache-ratios", "nothing.json"], "nothing.json does not exist"),
        ("generate", ["--magcache-ratios", "text.json"], "not a file of MagCache ratios"),
        (
            "generate",
            ["--magcache-ratios", "calm.json", "--magcache", "-1"],
            "threshold is -1.0",
        ),
        ("calibrate", ["--output", "ratios.safetensors"], "give a .json file"),
        ("calibrate", ["--output", "nowhere/ratios.json"], "folder nowhere does not exist"),
        ("calibrate", ["--steps", "1"], "needs at least 2, got 1"),
        ("calibrate", ["--unguided-last-step", "--model", "nothing"], "calibrate without it"),
    ],
)
def test_what_cannot_work_is_one_sentence(
    run: Run,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    verb: str,
    options: list[str],
    words: str,
) -> None:
    (tmp_path / "text.json").write_text("not ratios")
    calm(tmp_path / "calm.json")
    assert run(verb, *options) == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("error: ")
    assert captured.err.count("\n") == 1
    assert words in captured.err
    assert {path.name for path in tmp_path.iterdir()} == {"text.json", "calm.json"}


def test_published_ratios_are_looked_up_before_anything_is_read(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    # both stop at the missing VAE at the latest: a header says which ratios apply
    named = lite_header(tmp_path / "kandinsky5lite_t2v_distilled16steps_5s.safetensors")
    assert main(["generate", "a", "--model", str(named), "--magcache"]) == 1
    assert "published for video_lite t2v 5 s distilled at 512x768" in capsys.readouterr().err
    unnamed = lite_header(tmp_path / "mine.safetensors")
    assert main(["generate", "a", "--model", str(unnamed), "--magcache"]) == 1
    note, error = capsys.readouterr().err.splitlines()
    assert note == (
        "note: MagCache takes this model for video_lite t2v 5 s sft (a guess: task, seconds, stage)"
    )
    assert "--vae" in error
