"""Videos in and out: H.264 in .mp4 through PyAV (the "video" extra).

Frames stream: a clip of any length needs the memory of a few frames.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping
from fractions import Fraction
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ..errors import OutputError, import_extra
from ..files import atomic_write
from .pixels import Frames


class Clip(NamedTuple):
    """A video in memory."""

    frames: Frames
    """uint8 (F, H, W, 3), RGB."""
    fps: float
    metadata: dict[str, str]


def write_video(
    path: str | Path,
    frames: Iterable[np.ndarray],
    *,
    fps: float = 24.0,
    metadata: Mapping[str, str] | None = None,
    crf: int = 16,
) -> None:
    """Write an .mp4 that plays everywhere (H.264, yuv420p), atomically.

    Args:
        path: Where to write; must end in .mp4.
        frames: uint8 (H, W, 3) RGB arrays of one size with even sides: an array
            (F, H, W, 3), or an iterator, whose frames are written as they come.
        fps: Frames per second.
        metadata: Texts kept in the file, e.g. the prompt.
        crf: Quality, 0 (lossless, large) to 51; 16 is hardly told from the original.

    Raises:
        ValueError: The path, the quality or a frame is not as above.
        OutputError: The file cannot be written.
        MissingExtraError: PyAV is not installed.
    """
    path = Path(path)
    if path.suffix.lower() != ".mp4":
        raise ValueError(f"video {path} must end in .mp4: change the name.")
    if not 0 <= crf <= 51:
        raise ValueError(f"crf is {crf}: it must be 0 (best) to 51.")
    if not fps > 0:
        raise ValueError(f"fps is {fps}: it must be above 0.")
    av = import_extra("av", "video")
    stream_of_frames = iter(frames)
    first = next(stream_of_frames, None)
    if first is None:
        raise ValueError("a video needs at least one frame, and none was given.")
    _check_frame(first, None)
    height, width = first.shape[:2]
    rate = Fraction(fps).limit_denominator(1001)

    with atomic_write(path) as part:
        try:
            # faststart puts the index first, so that a browser plays before it has everything
            options = {"movflags": "+faststart+use_metadata_tags"}
            with av.open(str(part), "w", options=options) as container:
                container.metadata.update(metadata or {})
                stream = container.add_stream("libx264", rate=rate, options={"crf": str(crf)})
                stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
                stream.codec_context.time_base = 1 / rate
                # the conversion below makes BT.709 in the limited range; players must know
                context = stream.codec_context
                context.colorspace = context.color_primaries = context.color_trc = 1
                context.color_range = 1
                for index, frame in enumerate(itertools.chain([first], stream_of_frames)):
                    _check_frame(frame, (height, width))
                    picture = av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), "rgb24")
                    picture = picture.reformat(format="yuv420p", dst_colorspace="ITU709")
                    picture.pts, picture.time_base = index, 1 / rate
                    container.mux(stream.encode(picture))
                container.mux(stream.encode())
        except av.FFmpegError as error:
            raise OutputError(
                f"{path} could not be written ({error.strerror or error}): nothing was changed; "
                "free some space or choose another folder."
            ) from error


def read_video(path: str | Path, *, max_frames: int | None = None) -> Clip:
    """Read a video of any format that FFmpeg knows.

    Args:
        path: The file.
        max_frames: Stop after so many frames; None reads all.

    Returns:
        Its frames, frame rate and texts.

    Raises:
        ValueError: The file is missing, or holds no video.
        MissingExtraError: PyAV is not installed.
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"video {path} does not exist: check the path.")
    av = import_extra("av", "video")
    try:
        with av.open(str(path)) as container:
            stream = container.streams.video[0]
            decoded = itertools.islice(container.decode(stream), max_frames)
            frames = [frame.to_ndarray(format="rgb24") for frame in decoded]
            rate, texts = stream.average_rate, dict(container.metadata)
    except (av.FFmpegError, IndexError) as error:
        raise ValueError(f"video {path} cannot be decoded ({error}): give another file.") from error
    if not frames:
        raise ValueError(f"video {path} holds no frames: give another file.")
    return Clip(np.stack(frames), float(rate or 0), texts)


def _check_frame(frame: np.ndarray, size: tuple[int, int] | None) -> None:
    found = getattr(frame, "shape", None), getattr(frame, "dtype", None)
    if found[1] != np.uint8 or found[0] is None or len(found[0]) != 3 or found[0][2] != 3:
        raise ValueError(
            f"a frame has shape {found[0]} and dtype {found[1]}: expected uint8 (H, W, 3)."
        )
    height, width = frame.shape[:2]
    if size is not None and (height, width) != size:
        raise ValueError(
            f"a frame is {height}x{width} in a video of {size[0]}x{size[1]}: all must be alike."
        )
    if height % 2 or width % 2:
        raise ValueError(
            f"frames are {height}x{width}: an .mp4 needs even sides; crop or resize to "
            f"{height - height % 2 or 2}x{width - width % 2 or 2}."
        )
