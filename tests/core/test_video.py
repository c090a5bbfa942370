"""Frames in and out: what is written is what is read, and nothing is left half-written."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

from kandinsky_core.errors import OutputError
from kandinsky_core.video import (
    contact_sheet,
    read_image,
    read_image_metadata,
    read_video,
    to_pixels,
    to_uint8,
    write_contact_sheet,
    write_image,
    write_video,
)

COLOURS = np.array(
    [(255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255), (0, 0, 0), (20, 200, 90)], np.uint8
)


@pytest.fixture
def clip() -> np.ndarray:
    """(9, 48, 96, 3): six colour bars, and a grey square that moves by 4 pixels a frame."""
    frames = np.repeat(COLOURS, 16, axis=0)[None, None].repeat(9, 0).repeat(48, 1)
    for index, frame in enumerate(frames):
        frame[36:44, index * 4 : index * 4 + 8] = 128
    return frames


def test_every_level_survives_pixels_and_back():
    levels = np.arange(256, dtype=np.uint8).reshape(1, 16, 16, 1).repeat(3, axis=-1)
    pixels = to_pixels(levels)
    assert pixels.shape == (1, 3, 1, 16, 16)
    assert (pixels.min(), pixels.max()) == (-1, 1)
    assert np.array_equal(to_uint8(pixels), levels)
    assert np.array_equal(to_uint8(pixels[0]), levels)
    assert to_pixels(levels[0]).shape == pixels.shape


def test_pixels_are_rounded_and_cut():
    values = torch.tensor([-3.0, -1.0, 0.0, 0.5 / 127.5, 1.0, 9.0])
    frames = to_uint8(values.expand(3, 1, 1, 6))
    assert frames[0, 0, :, 0].tolist() == [0, 0, 128, 128, 255, 255]


def test_axes_and_channels_keep_their_places(clip):
    pixels = to_pixels(clip)
    assert pixels.shape == (1, 3, 9, 48, 96)
    assert pixels[0, :, 5, 0, 0].tolist() == [1, -1, -1]  # the red bar
    assert pixels[0, :, 5, 0, 40].tolist() == [-1, -1, 1]  # the blue bar
    assert np.array_equal(to_uint8(pixels), clip)


@pytest.mark.parametrize("shape", [(2, 3, 1, 4, 4), (1, 4, 1, 4, 4), (4, 4)])
def test_wrong_pixels(shape):
    with pytest.raises(ValueError, match="pixels have shape"):
        to_uint8(torch.zeros(shape))


def test_wrong_frames():
    with pytest.raises(ValueError, match="dtype float64: expected uint8"):
        to_pixels(np.zeros((1, 4, 4, 3)))


@pytest.mark.parametrize("fps", [24, 23.976, 8])
def test_video_there_and_back(tmp_path, clip, fps):
    path = tmp_path / "a.mp4"
    texts = {"prompt": "красный круг; a = b\n#1", "seed": "7"}
    write_video(path, clip, fps=fps, metadata=texts, crf=4)
    read = read_video(path)
    assert read.frames.shape == clip.shape
    assert read.fps == pytest.approx(fps, rel=1e-4)
    assert texts.items() <= read.metadata.items()
    # colours are exact to a few levels away from edges, which 4:2:0 blurs
    for bar, colour in enumerate(COLOURS):
        found = read.frames[4, 20, 16 * bar + 8].astype(int)
        assert abs(found - colour.astype(int)).max() <= 6
    for index in range(9):  # in order, none twice
        assert abs(read.frames[index, 40, index * 4 + 4].astype(int) - 128).max() <= 12
    assert len(read_video(path, max_frames=3).frames) == 3


def test_video_streams(tmp_path, clip):
    seen = []

    def endless():
        for index in itertools.count():
            seen.append(index)
            yield clip[index % 9]

    write_video(tmp_path / "a.mp4", itertools.islice(endless(), 40))
    assert len(seen) == 40
    assert len(read_video(tmp_path / "a.mp4").frames) == 40
    write_video(tmp_path / "one.mp4", clip[:1])
    assert len(read_video(tmp_path / "one.mp4").frames) == 1


def test_a_failing_decoder_leaves_the_old_video(tmp_path, clip):
    path = tmp_path / "a.mp4"
    write_video(path, clip)
    before = path.read_bytes()

    def cancelled():
        yield clip[0]
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_video(path, cancelled())
    assert path.read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == ["a.mp4"]


def test_video_errors(tmp_path, clip):
    path = tmp_path / "a.mp4"
    cases = [
        (lambda: write_video(tmp_path / "a.avi", clip), "must end in .mp4"),
        (lambda: write_video(path, clip[:, :47]), "frames are 47x96: .* even sides.* 46x96"),
        (lambda: write_video(path, clip[:0]), "at least one frame"),
        (lambda: write_video(path, [clip[0], clip[0, :46]]), "46x96 in a video of 48x96"),
        (lambda: write_video(path, clip.astype(float)), "expected uint8"),
        (lambda: write_video(path, clip, crf=52), "crf is 52"),
        (lambda: write_video(path, clip, fps=0), "fps is 0"),
        (lambda: read_video(path), "does not exist"),
    ]
    for call, message in cases:
        with pytest.raises(ValueError, match=message):
            call()
    with pytest.raises(OutputError, match=r"folder .* does not exist"):
        write_video(tmp_path / "nowhere" / "a.mp4", clip)
    (tmp_path / "text.mp4").write_text("not a video")
    with pytest.raises(ValueError, match=r"text.mp4 cannot be decoded"):
        read_video(tmp_path / "text.mp4")
    assert [file.name for file in tmp_path.iterdir()] == ["text.mp4"]


def test_image_there_and_back(tmp_path, clip):
    path = tmp_path / "картинка.png"
    texts = {"prompt": "красный круг", "seed": "7", "empty": ""}
    write_image(path, clip[0, :47, :95], metadata=texts)
    assert np.array_equal(read_image(path), clip[0, :47, :95])
    assert read_image_metadata(path) == texts
    pillow = pytest.importorskip("PIL.Image")
    with pillow.open(path) as image:
        assert image.text == texts
        assert np.array_equal(np.asarray(image), clip[0, :47, :95])


def test_image_errors(tmp_path, clip):
    (tmp_path / "text.png").write_text("not an image")
    (tmp_path / "empty.png").touch()
    cases = [
        (lambda: read_image(tmp_path / "none.png"), "does not exist"),
        (lambda: read_image(tmp_path / "text.png"), "cannot be decoded"),
        (lambda: read_image(tmp_path / "empty.png"), "cannot be decoded"),
        (lambda: write_image(tmp_path / "a.jpg", clip[0]), "must end in .png"),
        (lambda: write_image(tmp_path / "a.png", clip), r"expected uint8 \(H, W, 3\)"),
    ]
    for call, message in cases:
        with pytest.raises(ValueError, match=message):
            call()


def test_contact_sheet_holds_frames_in_reading_order(tmp_path):
    frames = np.stack([np.full((32, 32, 3), 10 * i, np.uint8) for i in range(17)])
    sheet = contact_sheet(frames, gap=8, width=4 * 64 + 5 * 8)
    assert sheet.shape == (4 * 64 + 5 * 8, 4 * 64 + 5 * 8, 3)
    shown = [sheet[8 + 72 * (i // 4) + 32, 8 + 72 * (i % 4) + 32, 0] for i in range(16)]
    assert shown[0] == 0
    assert shown[-1] == 160
    assert shown == sorted(set(shown))
    assert sheet[3, 3].tolist() == sheet[75, 100].tolist() == [24, 24, 27]
    row = contact_sheet(frames[:5], columns=9, gap=0, width=160)
    assert row.shape == (32, 160, 3)
    path = tmp_path / "sheet.png"
    write_contact_sheet(path, frames, columns=2, max_frames=3, metadata={"prompt": "x"})
    assert read_image_metadata(path) == {"prompt": "x"}
    height, width, _ = read_image(path).shape
    assert height == width  # two rows of two, the last cell empty


def test_contact_sheet_of_nothing():
    with pytest.raises(ValueError, match="at least one frame"):
        contact_sheet(np.zeros((0, 4, 4, 3), np.uint8))
    with pytest.raises(ValueError, match="columns 0"):
        contact_sheet(np.zeros((1, 4, 4, 3), np.uint8), columns=0)
