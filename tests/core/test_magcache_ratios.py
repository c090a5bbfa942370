"""Ratios: the published tables, calibration, and files."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch
from torch import Tensor

from kandinsky_core.caching import (
    Calibration,
    MagRatios,
    describe_mismatch,
    find_ratios,
    load_ratios,
    save_ratios,
)
from kandinsky_core.errors import OutputError
from kandinsky_core.family.settings import RELEASES, Release
from kandinsky_core.family.variants import VARIANTS
from kandinsky_core.flow import VisualCondition, make_noise, sample, timesteps
from kandinsky_core.guided_model import GuidedModel
from kandinsky_core.models import CrossDiT
from kandinsky_core.text import TextConditioning


def table(release: Release, *, large: bool = False) -> MagRatios:
    settings = RELEASES[release]
    return find_ratios(release, settings.larger if large else settings)


def test_each_release_gets_its_own_table() -> None:
    # first and last numbers as the configs of kandinskylab/kandinsky-5 list them
    lite = table(Release("video_lite", "t2v", 5, "sft"))
    assert (lite.cond[0], lite.uncond[0], lite.cond[-1], lite.uncond[-1]) == (
        (0.91607, 0.91507, 0.84336, 0.84193)
    )
    assert len(lite.cond) == len(lite.uncond) == 49
    first = {
        ("video_lite", "t2v", 10, "sft", False): 0.92261,
        ("video_lite", "t2v", 5, "nocfg", False): 0.8827,
        ("video_lite", "t2v", 10, "nocfg", False): 0.8736,
        ("video_lite", "i2v", 5, "sft", False): 0.90524,
        ("video_pro", "t2v", 5, "sft", False): 1.05108,
        ("video_pro", "t2v", 5, "sft", True): 1.06133,
        ("video_pro", "t2v", 10, "sft", False): 0.98023,
        ("video_pro", "t2v", 10, "sft", True): 0.98274,
        ("video_pro", "i2v", 5, "sft", False): 0.95295,
        ("video_pro", "i2v", 5, "sft", True): 1.03563,
        ("image_lite", "t2i", None, "sft", False): 0.83479,
    }
    for (*release, large), ratio in first.items():
        found = table(Release(*release), large=large)
        assert found.cond[0] == ratio
        assert (found.uncond is None) == (release[3] == "nocfg")


@pytest.mark.parametrize(
    "release",
    [
        Release("video_lite", "t2v", 5, "distilled"),
        Release("video_lite", "t2v", 10, "pretrain"),
        Release("video_pro", "t2v", 5, "distilled"),
        Release("image_lite", "t2i", None, "pretrain"),
        Release("image_edit", "i2i", None, "sft"),
        Release("nano", "t2v", None, "pretrain"),
    ],
)
def test_a_checkpoint_without_a_table_is_told_what_to_do(release: Release) -> None:
    with pytest.raises(ValueError, match=f"{release.variant} {release.task}.*calibrate"):
        table(release)


def test_every_number_of_steps_keeps_the_ends() -> None:
    ratios = MagRatios((2.0, 3.0, 4.0), None, "a test")
    assert ratios.for_steps("cond", 4) == [1.0, 2.0, 3.0, 4.0]
    assert ratios.for_steps("cond", 2) == [1.0, 4.0]
    # steps 0, 1.5 and 3 of the table: halves go to the even neighbour
    assert ratios.for_steps("cond", 3) == [1.0, 3.0, 4.0]
    assert ratios.for_steps("cond", 7) == [1.0, 1.0, 2.0, 3.0, 3.0, 3.0, 4.0]
    assert ratios.for_steps("cond", 1) == [4.0]
    assert ratios.for_steps("uncond", 4) is None


def watch(model: CrossDiT) -> list[Tensor]:
    """Return what the visual blocks add (B, S, D), call by call."""
    first, last = model.visual_transformer_blocks[0], model.visual_transformer_blocks[-1]
    entered: list[Tensor] = []
    added: list[Tensor] = []
    first.register_forward_pre_hook(lambda _, args: entered.append(args[0]))
    last.register_forward_hook(lambda *parts: added.append(parts[-1] - entered[-1]))
    return added


def text(seed: int) -> TextConditioning:
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randn(1, 3, 24, generator=generator)
    pooled = torch.randn(1, 12, generator=generator)
    return TextConditioning(tokens, torch.ones(1, 3, dtype=torch.bool), pooled)


@pytest.mark.parametrize("first_frame", [False, True], ids=["t2v", "i2v"])
@pytest.mark.parametrize("scale", [1.0, 3.0])
def test_calibration_measures_the_mean_ratio_of_norms(first_frame: bool, scale: float) -> None:
    torch.manual_seed(0)
    network = CrossDiT(VARIANTS["debug"]).eval()
    for param in network.parameters():
        torch.nn.init.normal_(param, std=0.1)
    added, calibration, num_steps = watch(network), Calibration(), 5
    frame = torch.randn(1, 4, 1, 4, 4) if first_frame else None
    condition = VisualCondition(first_frame=frame)
    model = GuidedModel(network, text(1), text(2), scale, condition, cache=calibration)
    noise, times = make_noise((1, 4, 2, 4, 4), 0), timesteps(num_steps, 3.0)
    calibration.begin(num_steps)
    for step in sample(model, noise, times, condition=condition):
        if step.index < num_steps - 1:
            with pytest.raises(ValueError, match="let the run finish"):
                calibration.ratios("a test")
    measured = calibration.ratios("a test")

    columns = [added] if scale == 1.0 else [added[0::2], added[1::2]]
    expected = []
    for column in columns:
        norms = [residual.double().pow(2).sum(2).sqrt() for residual in column]
        assert len(norms) == num_steps
        pairs = zip(norms[1:], norms[:-1], strict=True)
        expected.append([(now / before).mean().item() for now, before in pairs])
    assert measured.cond == pytest.approx(expected[0], abs=1e-5)
    assert (measured.uncond is None) == (scale == 1.0)
    if measured.uncond is not None:
        assert measured.uncond == pytest.approx(expected[1], abs=1e-5)


def test_a_calibration_outlives_its_run_without_tensors() -> None:
    calibration = Calibration()
    calibration.begin(3)
    for size in (1.0, 2.0, 3.0):
        calibration.around("cond")(torch.zeros(1, 2, 3), lambda x, size=size: x + size)
    calibration.end()
    assert not any(isinstance(x, Tensor) for x in calibration._norms.values())
    assert calibration.ratios("a test").cond == (2.0, 1.5)


NANO = Release("nano", "t2v", None, "pretrain")


@pytest.mark.parametrize(
    ("noted", "words"),
    [
        ({}, None),
        ({"size": [128, 128], "task": "t2v", "cfg": 3.0}, None),
        ({"size": "large"}, None),  # nothing to compare
        ({"size": [256, 256]}, "was measured at 256x256, not at sizes around 128x128: "),
        ({"task": "i2v"}, "was measured for i2v, not for t2v: "),
        ({"release": None}, "was measured on an unknown checkpoint, not on nano t2v pretrain: "),
        (
            {"release": "other", "size": [240, 240], "task": "t2i"},
            "was measured on other, not on nano t2v pretrain; at 240x240, not at sizes around "
            "128x128; for t2i, not for t2v: ",
        ),
    ],
)
def test_what_a_file_was_not_measured_on_is_named(
    noted: dict[str, object], words: str | None
) -> None:
    settings = RELEASES[NANO]
    noted = {"release": "nano t2v pretrain"} | noted
    found = describe_mismatch(noted, NANO, settings, row=settings, task="t2v")
    assert (found == "") if words is None else found.startswith(words)


def test_calibrating_branches_in_one_batch_gives_the_same() -> None:
    torch.manual_seed(0)
    runs = [(torch.randn(4, 3, 2), torch.randn(4, 3, 2)) for _ in range(4)]
    together, apart = Calibration(), Calibration()
    together.begin(4)
    apart.begin(4)
    for visual, output in runs:
        assert together.around("uncond", "cond")(visual, lambda _, output=output: output) is output
        apart.around("uncond")(visual[:2], lambda _, output=output: output[:2])
        apart.around("cond")(visual[2:], lambda _, output=output: output[2:])
    assert together.ratios("a test") == apart.ratios("a test")


def test_a_second_calibration_starts_clean() -> None:
    calibration = Calibration()
    for factor in (2.0, 3.0):
        calibration.begin(3)
        for step in range(3):
            calibration.around("cond")(torch.zeros(1, 2, 3), lambda v, s=step: v + factor**s)  # noqa: B023  called at once
        assert calibration.ratios("a test").cond == (factor, factor)


def test_blocks_that_change_nothing_cannot_be_calibrated() -> None:
    calibration = Calibration()
    calibration.begin(2)
    for _ in range(2):
        calibration.around("cond")(torch.ones(1, 2, 3), torch.clone)
    with pytest.raises(ValueError, match=r"one of them is nan: .*use trained weights"):
        calibration.ratios("a test")
    with pytest.raises(ValueError, match="at least 2, got 1"):
        calibration.begin(1)


@pytest.mark.parametrize("uncond", [None, (0.9, 1.25)])
def test_a_file_gives_back_what_was_saved(tmp_path: Path, uncond: tuple[float, ...] | None) -> None:
    path = tmp_path / "mine.json"
    save_ratios(path, MagRatios((1.5, 0.75), uncond, "mine.json"), {"release": "nano", "seed": 3})
    assert load_ratios(path) == (
        MagRatios((1.5, 0.75), uncond, "mine.json"),
        {"release": "nano", "seed": 3},
    )


def test_a_failed_save_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "mine.json"
    save_ratios(path, MagRatios((1.5,), None, "old"), {})
    old = path.read_bytes()

    def full(*_: object, **__: object) -> None:
        raise OSError(28, os.strerror(28))

    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_text", full)
        with pytest.raises(OutputError, match="No space left"):
            save_ratios(path, MagRatios((2.5,), None, "new"), {})
    assert path.read_bytes() == old
    assert [each.name for each in tmp_path.iterdir()] == ["mine.json"]
    with pytest.raises(OutputError, match="does not exist"):
        save_ratios(tmp_path / "nowhere" / "mine.json", MagRatios((2.5,), None, "new"), {})


GOOD = {"format": "kandinsky_core.magcache_ratios", "version": 1, "cond": [1.0], "uncond": None}


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, "does not exist"),
        (b"", "not a file of MagCache ratios"),
        (b"\xff\xfe\x00", "not a file of MagCache ratios"),
        (b"[" * 100_000, "not a file of MagCache ratios"),
        (b" " * (2**20 + 1), "not a file of MagCache ratios"),
        ([1.0, 2.0], "not a file of MagCache ratios"),
        ({"cond": [1.0]}, "not a file of MagCache ratios"),
        (GOOD | {"version": 2}, "is of version 2"),
        ({"format": GOOD["format"]}, "version None"),
        (GOOD | {"cond": None}, "found none"),
        (GOOD | {"cond": []}, "found none"),
        (GOOD | {"cond": "1.0, 1.0"}, "found none"),
        (GOOD | {"cond": [1.0, "one"]}, "found 'one'"),
        (GOOD | {"cond": [True]}, "found True"),
        (GOOD | {"cond": [None]}, "found None"),
        (GOOD | {"cond": [[1.0]]}, r"found \[1.0\]"),
        (GOOD | {"cond": [0.0]}, "found 0.0"),
        (GOOD | {"cond": [-1.0]}, "found -1.0"),
        (GOOD | {"cond": [float("nan")]}, "found nan"),
        (GOOD | {"cond": [float("inf")]}, "found inf"),
        (GOOD | {"cond": [10**400]}, "found 1000"),
        (GOOD | {"uncond": {}}, "uncond .*found none"),
        (GOOD | {"uncond": [1.0, 1.0]}, "equally long, found 1 and 2"),
    ],
)
def test_a_bad_file_is_one_sentence(tmp_path: Path, content: object, words: str) -> None:
    path = tmp_path / "bad.json"
    if content is not None:
        path.write_bytes(content if isinstance(content, bytes) else json.dumps(content).encode())
    with pytest.raises(ValueError, match=words) as caught:
        load_ratios(path)
    message = str(caught.value)
    assert "bad.json" in message
    assert "\n" not in message
    assert len(message) < 250 + len(str(tmp_path))
