"""The command line on files of an untrained nano model."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from kandinsky_core import errors
from kandinsky_core.__main__ import main
from kandinsky_core.checkpoint import describe_metadata, save_checkpoint
from kandinsky_core.config import DiTConfig, NanoTextConfig, VideoVAEConfig
from kandinsky_core.models import CrossDiT, ImageVAE, VideoVAE
from kandinsky_core.text import NanoTextEncoder, Written, save_nano_text_encoder
from kandinsky_core.variants import VAES, VARIANTS
from kandinsky_core.video import read_image, read_image_metadata, read_video, write_image

DIT = DiTConfig(48, 96, 32, 1, 1, (4, 6, 6), latent_channels=4, text_dim=16, pooled_dim=16)
VAE = VideoVAEConfig(
    (8, 8, 8), 1, latent_channels=4, norm_num_groups=4, patch_size=4, mid_block_attention=False
)
WORDS = ("a", "circle", "red")
Run = Callable[..., int]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the three files of a tiny nano model."""
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
    """Runs `generate` on the tiny model in a folder of its own."""
    monkeypatch.chdir(tmp_path)

    def generate(*options: object, prompt: str = "a red circle") -> int:
        parts = ("--vae", model / "vae.safetensors")
        parts += ("--text-encoder", model / "text_encoder.safetensors")
        small = ("--height", 32, "--width", 48, "--frames", 5, "--steps", 2)
        command = ("generate", prompt, "--model", model / "transformer.safetensors")
        return main([str(each) for each in (*command, *parts, *small, *options)])

    return generate


def header_only(
    path: Path, network: torch.nn.Module, metadata: dict[str, str] | None = None
) -> Path:
    """A file with the header of a network on the meta device; its weights are a hole."""
    header: dict[str, object] = {"__metadata__": metadata or {}}
    end = 0
    for name, tensor in network.state_dict().items():
        start, end = end, end + 2 * tensor.numel()
        header[name] = {"dtype": "BF16", "shape": list(tensor.shape), "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        file.truncate(8 + len(text) + end)
    return path


def video_lite(path: Path) -> Path:
    return header_only(path, CrossDiT(VARIANTS["video_lite"], device="meta"))


def picture(path: Path) -> Path:
    write_image(path, np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8))
    return path


def one_line(capsys: pytest.CaptureFixture[str]) -> str:
    """The error, which must be all that was printed."""
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("error: ")
    assert captured.err.count("\n") == 1, captured.err
    return captured.err


def test_a_prompt_makes_a_video_and_a_sheet(
    run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("av")
    assert run("--sheet", "sheet.png", "--seed", 5) == 0
    printed = capsys.readouterr()
    assert printed.out.split() == ["output.mp4", "sheet.png"]
    assert "sampling: 100%" in printed.err
    assert "decoding: 100%" in printed.err
    clip = read_video(tmp_path / "output.mp4")
    assert clip.frames.shape == (5, 32, 48, 3)
    assert clip.fps == 24
    assert clip.metadata["prompt"] == "a red circle"
    assert clip.metadata["seed"] == "5"
    assert clip.metadata["steps"] == "2"
    assert len(read_image(tmp_path / "sheet.png"))


def test_nano_is_asked_to_expand_and_the_prompt_stays(
    run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("--task", "t2i", "--expand") == 0
    printed = capsys.readouterr()
    assert "note: This text encoder cannot write" in printed.err
    metadata = read_image_metadata(tmp_path / "output.png")
    assert metadata["prompt"] == "a red circle"
    assert "original_prompt" not in metadata


def test_an_expanded_prompt_is_what_is_made(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = []

    def write(_encoder, chat, image, choose, max_tokens):
        asked.append((chat, image, choose.temperature, max_tokens))
        return Written("A red circle, a red circle and a very large one", finished=True)

    monkeypatch.setattr(NanoTextEncoder, "write", write, raising=False)
    options = ("--expand", "--keep-language", "--temperature", 0.25, "--max-tokens", 64)
    assert run("--task", "t2i", *options) == 0
    assert "note: Expanded from 3 to 11 words." in capsys.readouterr().err
    ((chat, image, temperature, max_tokens),) = asked
    assert "Write in the language of the request." in chat and "a red circle<|im_end|>" in chat
    assert (image, temperature, max_tokens) == (None, 0.25, 64)
    metadata = read_image_metadata(tmp_path / "output.png")
    assert metadata["prompt"].startswith("A red circle, a red circle and")
    assert metadata["original_prompt"] == "a red circle"


def test_a_seed_repeats_and_another_differs(run: Run, tmp_path: Path) -> None:
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        assert run("--task", "t2i", "--seed", seed, "--output", f"{name}.png") == 0
    first, again, other = (read_image(tmp_path / f"{name}.png") for name in "abc")
    assert first.shape == (32, 48, 3)
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)
    assert read_image_metadata(tmp_path / "a.png")["task"] == "t2i"


def test_an_image_makes_the_task_image_to_video(run: Run, tmp_path: Path) -> None:
    pytest.importorskip("av")
    assert run("--image", picture(tmp_path / "ball.png"), "--output", "clip.mp4") == 0
    assert read_video(tmp_path / "clip.mp4").metadata["task"] == "i2v"


def test_words_that_the_model_never_learnt_are_named(
    run: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("--task", "t2i") == 0
    assert "never learnt" not in capsys.readouterr().err
    assert run("--task", "t2i", prompt="a blue circle, a pink circle") == 0
    assert "note: this model never learnt: blue, pink\n" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--output", "clip.gif"], "give a .mp4 file"),
        (["--task", "t2i", "--output", "clip.mp4"], "give a .png file"),
        (["--output", "nowhere/clip.mp4"], "folder nowhere does not exist"),
        (["--output", "taken.mp4"], "it is a folder"),
        (["--sheet", "nowhere/sheet.png"], "folder nowhere does not exist"),
        (["--sheet", "sheet.jpg"], "give a .png file"),
        (["--task", "t2i", "--output", "a.png", "--sheet", "a.png"], "another name"),
        (["--image", "nothing.png"], "nothing.png does not exist"),
        (["--image", "text.png"], "cannot be decoded"),
        (["--task", "i2v"], "starts from an image"),
        (["--task", "i2i"], "choose t2v or i2v or t2i"),
        (["--model", "nothing"], "nothing does not exist"),
        (["--model", "text.png"], "not a safetensors file"),
        (["--vae", "nothing"], "nothing does not exist"),
        (["--text-encoder", "nothing"], "nothing does not exist"),
        (["--text-encoder", "text.png"], "not a safetensors file"),
        (["--device", "toaster"], "device 'toaster' cannot be used"),
        (["--vae-memory", "0"], "more than 0"),
        (["--height", "33"], "height 33 must be a multiple of 16"),
        (["--frames", "4"], "must be 4k + 1"),
        (["--steps", "0"], "at least 1"),
        (["--cfg", "nan"], "must be a number"),
        (["--rope-scale", "1", "0", "1"], "above 0"),
        (["--seed", "-1"], "from 0 to"),
    ],
)
def test_what_cannot_work_is_one_sentence_before_any_sampling(
    run: Run,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    options: list[str],
    words: str,
) -> None:
    (tmp_path / "taken.mp4").mkdir()
    (tmp_path / "text.png").write_text("not a picture")
    assert run(*options) == 1
    assert words in one_line(capsys)
    assert {path.name for path in tmp_path.iterdir()} == {"taken.mp4", "text.png"}


@pytest.mark.parametrize("package", ["av", "tqdm"])
def test_a_missing_extra_is_named_before_the_model_is_read(
    run: Run,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    package: str,
) -> None:
    find = errors.importlib.import_module

    def refuse(name: str) -> object:
        if name == package:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
        return find(name)

    monkeypatch.setattr(errors.importlib, "import_module", refuse)
    assert run("--text-encoder", "not looked at") == 1
    assert 'pip install "kandinsky-core[video]"' in one_line(capsys)


def test_the_vae_of_another_model_is_refused(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    # headers are enough: what is wrong is said before any weights are read
    released = video_lite(tmp_path / "lite.safetensors")
    parts = ("--vae", model / "vae.safetensors", "--text-encoder", tmp_path)
    assert main([str(each) for each in ("generate", "a", "--model", released, *parts)]) == 1
    assert "has 4 latent channels and the transformer 16" in one_line(capsys)

    flux = header_only(tmp_path / "flux.safetensors", ImageVAE(VAES["flux"], device="meta"))
    parts = ("--vae", flux, "--text-encoder", tmp_path)
    assert main([str(each) for each in ("generate", "a", "--model", released, *parts)]) == 1
    assert "is the flux VAE and a video_lite model works with the hunyuan VAE" in one_line(capsys)

    # nano's stays nano's whatever scale was measured for it
    config = replace(VAES["nano"], scaling_factor=0.7, shift_factor=0.1)
    nano = header_only(
        tmp_path / "nano.safetensors",
        VideoVAE(config, device="meta"),
        describe_metadata(config),
    )
    parts = ("--vae", nano, "--text-encoder", tmp_path)
    assert main([str(each) for each in ("generate", "a", "--model", released, *parts)]) == 1
    assert "is the nano VAE" in one_line(capsys)
    assert main(["identify", str(nano)]) == 0
    assert "8x8 pixels x 4 frames to 16 channels" in capsys.readouterr().out


def test_a_single_file_needs_its_parts(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    released = video_lite(tmp_path / "lite.safetensors")
    assert main(["generate", "a", "--model", str(released)]) == 1
    assert "give the vae with --vae" in one_line(capsys)


def test_identify_prints_facts_for_readers_and_for_programs(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = video_lite(tmp_path / "kandinsky5lite_t2v_distilled16steps_10s.safetensors")
    assert main(["identify", str(file)]) == 0
    text = capsys.readouterr().out
    for words in ("2.01 billion", "16 steps", "guidance 1", "shift 10", "NABLA", "Qwen2.5-VL"):
        assert words in text
    assert main(["identify", "--json", str(file)]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert (facts["task"], facts["seconds"], facts["stage"]) == ("t2v", 10, "distilled")

    for part in ("vae", "text_encoder"):
        assert main(["identify", str(model / f"{part}.safetensors")]) == 0
        assert part.replace("_", " ") in capsys.readouterr().out

    assert main(["identify", str(tmp_path / "nothing.safetensors")]) == 1
    assert "nothing.safetensors does not exist" in one_line(capsys)
