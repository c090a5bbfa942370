"""The command line on files of an untrained nano model."""

from __future__ import annotations

import hashlib
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
from kandinsky_core.checkpoint import describe_metadata, identify, save_checkpoint
from kandinsky_core.cli.jobs import checksum
from kandinsky_core.family.config import DiTConfig, NanoTextConfig, VideoVAEConfig
from kandinsky_core.family.variants import VAES, VARIANTS
from kandinsky_core.models import CrossDiT, ImageVAE, VideoVAE
from kandinsky_core.text import NanoTextEncoder, Written, save_nano_text_encoder
from kandinsky_core.video import (
    read_image,
    read_image_metadata,
    read_metadata,
    read_video,
    write_image,
)

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
    """Run `generate` on the tiny model in a folder of its own."""
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
    """Return a file with the header of a network on the meta device; its weights are a hole."""
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
    """Return the error, which must be all that was printed."""
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


def test_what_was_made_tells_how(
    run: Run, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("av")
    weights = hashlib.sha256((model / "transformer.safetensors").read_bytes()).hexdigest()
    expected = {
        "prompt": "a red circle; красный = 1",
        "model_sha256": weights,
        "seed": "5",
        "steps": "2",
        "cfg": "2.5",
        "shift": "3",
        "rope_scale": "1 1 1",
        "attention": "dense",
        "width": "48",
        "height": "32",
    }
    for task, name in (("t2v", "clip.mp4"), ("t2i", "image.png")):
        options = ("--task", task, "--output", name, "--seed", 5, "--cfg", 2.5)
        assert run(*options, prompt=expected["prompt"]) == 0
        assert (expected | {"task": task}).items() <= read_metadata(tmp_path / name).items()
        capsys.readouterr()
        assert main(["show", name]) == 0
        shown = capsys.readouterr().out.splitlines()
        assert f"model_sha256: {weights}" in shown
        assert "seed: 5" in shown
        assert not [line for line in shown if line.startswith("major_brand")]


def test_the_checksum_of_shards_changes_with_any_of_them(tmp_path: Path) -> None:
    network = CrossDiT(DIT).state_dict()
    names = sorted(network)
    metadata = describe_metadata(DIT, variant="nano", task="t2v", stage="pretrain")
    for index, part in enumerate((names[:3], names[3:]), start=1):
        file = tmp_path / f"model-0000{index}-of-00002.safetensors"
        save_checkpoint(file, {name: network[name] for name in part}, metadata)
    before = checksum(identify(tmp_path))
    assert checksum(identify(tmp_path)) == before
    with file.open("rb+") as stream:
        stream.seek(-1, 2)
        stream.write(b"\x7f")
    assert checksum(identify(tmp_path)) != before


def test_show_refuses_what_carries_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("av")
    (tmp_path / "text.mp4").write_text("not a video")
    for name, words in (
        ("nothing.png", "does not exist"),
        ("text.mp4", "neither a video nor a PNG"),
        ("bare.png", "carries no prompt"),
        ("broken.png", "has a text that cannot be read"),
    ):
        if name == "bare.png":
            picture(tmp_path / name)
        if name == "broken.png":
            write_image(tmp_path / name, np.zeros((2, 2, 3), np.uint8), metadata={"a": "b"})
            content = (tmp_path / name).read_bytes()
            (tmp_path / name).write_bytes(content.replace(b"a\0\0\0\0\0b", b"a" * 7))
        assert main(["show", str(tmp_path / name)]) == 1
        assert words in one_line(capsys)


@pytest.fixture
def run_list(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Run `generate --prompts` for small images on the tiny model."""
    monkeypatch.chdir(tmp_path)

    def generate(*options: object, text: str | bytes) -> int:
        content = text if isinstance(text, bytes) else text.encode()
        (tmp_path / "list.txt").write_bytes(content)
        parts = ("--vae", model / "vae.safetensors")
        parts += ("--text-encoder", model / "text_encoder.safetensors", "--task", "t2i")
        small = ("--height", 32, "--width", 48, "--steps", 2, "--prompts", "list.txt")
        command = ("generate", "--model", model / "transformer.safetensors")
        return main([str(each) for each in (*command, *parts, *small, *options)])

    return generate


def test_a_list_gives_an_output_for_every_prompt(run_list: Run, tmp_path: Path) -> None:
    text = "# clips\na red circle | seed=3\na circle\n\na red circle | height=48 steps=3 cfg=1\n"
    assert run_list("--output", "made", "--seed", 9, text=text) == 0
    found = [read_metadata(path) for path in (tmp_path / "made").iterdir()]
    made = {
        (each["prompt"], each["seed"], each["height"], each["steps"], each["cfg"]) for each in found
    }
    assert made == {
        ("a red circle", "3", "32", "2", "4"),
        ("a circle", "9", "32", "2", "4"),
        ("a red circle", "9", "48", "3", "1"),
    }
    assert len(found) == 3


def test_a_list_goes_on_where_it_stopped(
    run_list: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = "a red circle\na circle | seed=1\na circle\na circle"
    assert run_list(text=text) == 0
    files = sorted((tmp_path / "outputs").iterdir())
    assert len(files) == 3  # two prompts are equal
    printed = capsys.readouterr().err
    assert "[3/3] a circle" in printed
    assert "1 of 4 exist in outputs or repeat another" in printed
    before = {path: path.stat().st_mtime_ns for path in files[1:]}
    files[0].unlink()
    assert run_list(text=text) == 0
    assert "[1/1]" in capsys.readouterr().err
    assert sorted((tmp_path / "outputs").iterdir()) == files
    assert {path: path.stat().st_mtime_ns for path in files[1:]} == before
    assert run_list(text=text) == 0
    assert capsys.readouterr().out == ""
    # other settings are another job
    assert run_list("--cfg", 2, text="a circle") == 0
    assert len(list((tmp_path / "outputs").iterdir())) == 4


def test_other_options_are_another_job(
    run_list: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_list(text="a circle") == 0
    capsys.readouterr()
    assert run_list("--device", "cpu", "--vae-memory", 4, text="a circle") == 0
    assert "1 of 1 exist" in capsys.readouterr().err
    others = (
        ("--unguided-last-step",),
        ("--no-normalize",),
        ("--dtype", "bf16"),
        ("--size-class", "large"),
        ("--attention", "nabla"),
        ("--attention", "nabla", "--nabla-p", 0.5),
        ("--attention-backend", "gathered"),
    )
    size = ("--height", 32, "--width", 64)  # of NABLA's tiles
    assert run_list(*size, text="a circle") == 0
    for number, options in enumerate(others, start=3):
        assert run_list(*size, *options, text="a circle") == 0
        assert len(list((tmp_path / "outputs").iterdir())) == number, options


def test_what_was_made_tells_every_option_that_its_settings_do_not(
    run: Run, model: Path, tmp_path: Path
) -> None:
    assert run("--task", "t2i", "--output", "plain.png") == 0
    plain = read_image_metadata(tmp_path / "plain.png")
    options = ("--unguided-last-step", "--no-normalize", "--no-lora-trigger", "--dtype", "bf16")
    options += ("--attention", "nabla", "--nabla-p", 0.25, "--attention-backend", "reference")
    assert run("--task", "t2i", "--output", "other.png", "--width", 64, *options) == 0
    other = read_image_metadata(tmp_path / "other.png")
    expected = {
        "width": "64",
        "attention": "nabla",
        "nabla_p": "0.25",
        "attention_backend": "reference",
        "unguided_last_step": "yes",
        "no_lora_trigger": "yes",
        "normalize": "no",
        "dtype": "bf16",
    }
    assert {name: text for name, text in other.items() if plain.get(name) != text} == expected
    assert plain["vae"] == str(model / "vae.safetensors")
    assert plain["text_encoder"] == str(model / "text_encoder.safetensors")


def test_attention_is_what_was_asked_for(run: Run, tmp_path: Path) -> None:
    # more than one window of tiles; in one step, as rounding may choose other blocks in the next
    sized = ("--task", "t2i", "--height", 128, "--width", 128, "--steps", 1)
    asked = {
        "dense": (),
        "all": ("--attention", "nabla", "--nabla-p", 1),
        "sparse": ("--attention", "nabla", "--nabla-p", 0),
        "again": ("--attention", "nabla", "--nabla-p", 0, "--attention-backend", "reference"),
    }
    pixels = {}
    for name, options in asked.items():
        assert run(*sized, "--output", f"{name}.png", *options) == 0
        pixels[name] = read_image(tmp_path / f"{name}.png").astype(int)
    assert np.abs(pixels["all"] - pixels["dense"]).max() <= 1
    assert np.abs(pixels["again"] - pixels["sparse"]).max() <= 1
    assert np.abs(pixels["sparse"] - pixels["dense"]).max() > 1


def test_an_image_for_a_text_to_video_file_names_one_that_takes_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    # before any part is looked for
    file = video_lite(tmp_path / "kandinsky5lite_t2v_sft_5s.safetensors")
    ball = picture(tmp_path / "ball.png")
    for options in ((), ("--task", "i2v")):
        command = ("generate", "a", "--model", file, "--image", ball, *options)
        assert main([str(each) for each in command]) == 1
        assert "load a file for it such as kandinsky5lite_i2v_5s" in one_line(capsys)


@pytest.mark.parametrize(
    ("text", "options", "words"),
    [
        ("a circle\na | seed=x", (), "list.txt: line 2: seed must be a whole number"),
        ("a circle\na circle | height=33", (), "list.txt, line 2: "),
        ("", (), "found none"),
        (b"\xff\xfe\x00", (), "is no UTF-8 text"),
        ("a circle", ("--prompts", "nothing.txt"), "--prompts nothing.txt cannot be read"),
        ("a circle", ("--sheet", "a.png"), "--sheet a.png is one file for many prompts"),
        ("a circle", ("--output", "list.txt"), "list.txt is a file: with --prompts give a folder"),
        ("a circle", ("a prompt",), "--prompts is given beside a prompt"),
    ],
)
def test_a_list_that_cannot_work_is_one_sentence_before_any_sampling(
    run_list: Run,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    text: str | bytes,
    options: tuple[str, ...],
    words: str,
) -> None:
    assert run_list(*options, text=text) == 1
    assert words in one_line(capsys)
    assert not list(tmp_path.rglob("*.png"))


def test_neither_a_prompt_nor_a_list(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["generate"]) == 1
    assert "prompt: give one, or a list of them with --prompts FILE" in one_line(capsys)


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
        (["--vae-memory", "inf"], "more than 0"),
        (["--vae-memory", "1e300"], "more than 0"),
        (["--height", "33"], "height 33 must be a multiple of 16"),
        (["--frames", "4"], "must be 4k + 1"),
        (["--steps", "0"], "at least 1"),
        (["--cfg", "nan"], "must be a number"),
        (["--rope-scale", "1", "0", "1"], "above 0"),
        (["--seed", "-1"], "from 0 to"),
        (["--nabla-p", "0.5"], "attention is dense here: choose attention nabla"),
        (["--attention", "nabla", "--nabla-p", "2", "--width", "64"], "P is 2.0"),
        (["--attention", "nabla"], "width 48 must be a multiple of 32"),
        (["--attention-backend", "toaster"], "choose one of auto, dense"),
        (["--lora", "nothing.safetensors"], "nothing.safetensors does not exist"),
        (["--lora", "text.png:0.5"], "not a safetensors file"),
        (["--lora", "text.png:inf"], "has the strength inf"),
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


def test_loras_change_the_image_by_their_strength(
    run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    generator = torch.Generator().manual_seed(0)
    layer = "visual_transformer_blocks.{}.feed_forward.in_layer"
    pair = {"A": torch.randn(2, 48, generator=generator), "B": torch.ones(96, 2)}
    tensors = {f"{layer.format(0)}.lora_{half}.weight": value for half, value in pair.items()}
    tensors |= {f"{layer.format(5)}.lora_{half}.weight": value for half, value in pair.items()}
    save_checkpoint(tmp_path / "zorb.safetensors", tensors, {"trigger": "zorb"})
    silent, half = "--no-lora-trigger", ["--lora", "zorb.safetensors:0.5"]
    options = {
        "plain": [],
        "zero": ["--lora", "zorb.safetensors:0", silent],
        "one": ["--lora", "zorb.safetensors", silent],
        "halves": [*half, *half, silent],
        "trigger": ["--lora", "zorb.safetensors"],
    }
    for name, given in options.items():
        assert run("--task", "t2i", "--output", f"{name}.png", *given) == 0
        error = capsys.readouterr().err
        assert ("zorb.safetensors: 1 of 2 entries have no place" in error) == bool(given)
    images = {name: read_image(tmp_path / f"{name}.png").astype(int) for name in options}
    assert np.array_equal(images["plain"], images["zero"])
    assert np.abs(images["plain"] - images["one"]).max() > 1
    assert np.abs(images["halves"] - images["one"]).max() <= 1
    assert np.abs(images["trigger"] - images["one"]).max() > 1
    assert read_image_metadata(tmp_path / "one.png")["lora"] == "zorb.safetensors"


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
