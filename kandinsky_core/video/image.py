"""Images in and out: PNG with text, and contact sheets of a clip.

OpenCV reads, writes and resizes; its BGR order stays inside this file.
"""

from __future__ import annotations

import math
import struct
import zlib
from collections.abc import Mapping
from pathlib import Path

import cv2
import numpy as np

from ..files import atomic_write
from .pixels import Frames

_PNG_HEADER_BYTES = 8 + 25  # signature and the IHDR chunk, which must stay first


def read_image(path: str | Path) -> np.ndarray:
    """Read an image of any format that OpenCV knows.

    Args:
        path: The file; rotation by EXIF is applied, transparency is laid on black.

    Returns:
        uint8 (H, W, 3), RGB.

    Raises:
        ValueError: The file is missing or no image.
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"image {path} does not exist: check the path.")
    # cv2.imread cannot open every path on Windows, and prints a warning of its own
    data = np.frombuffer(path.read_bytes(), np.uint8)
    image = cv2.imdecode(data, cv2.IMREAD_COLOR) if data.size else None
    if image is None:
        raise ValueError(f"image {path} cannot be decoded: give a PNG, JPEG, WebP or BMP file.")
    return cv2.cvtColor(image, cv2.COLOR_BGR2RGB)


def write_image(
    path: str | Path, image: np.ndarray, *, metadata: Mapping[str, str] | None = None
) -> None:
    """Write a PNG, atomically.

    Args:
        path: Where to write; must end in .png.
        image: uint8 (H, W, 3), RGB.
        metadata: Texts kept in the file (keyword -> text), e.g. the prompt.

    Raises:
        ValueError: The path or the image is of another kind.
        OutputError: The file cannot be written.
    """
    path = Path(path)
    if path.suffix.lower() != ".png":
        raise ValueError(f"image {path} must end in .png: change the name.")
    image = np.asarray(image)
    if image.ndim != 3 or image.shape[-1] != 3 or image.dtype != np.uint8:
        raise ValueError(
            f"image has shape {image.shape} and dtype {image.dtype}: expected uint8 (H, W, 3)."
        )
    _, encoded = cv2.imencode(".png", cv2.cvtColor(image, cv2.COLOR_RGB2BGR))
    data = encoded.tobytes()
    texts = b"".join(_text_chunk(key, text) for key, text in (metadata or {}).items())
    with atomic_write(path) as part:
        part.write_bytes(data[:_PNG_HEADER_BYTES] + texts + data[_PNG_HEADER_BYTES:])


def read_image_metadata(path: str | Path) -> dict[str, str]:
    """Read the texts in a PNG: those of `write_image`, and those of ComfyUI.

    Args:
        path: The file.

    Returns:
        Keyword -> text; empty for a file that is no PNG.
    """
    data = Path(path).read_bytes()
    texts: dict[str, str] = {}
    position = 8
    while data.startswith(b"\x89PNG") and position + 8 <= len(data):
        length, kind = struct.unpack(">I4s", data[position : position + 8])
        if kind == b"iTXt":
            body = data[position + 8 : position + 8 + length]
            keyword, rest = body.split(b"\0", 1)
            texts[keyword.decode("latin-1")] = rest[2:].split(b"\0", 2)[2].decode()
        elif kind == b"tEXt":
            keyword, text = data[position + 8 : position + 8 + length].split(b"\0", 1)
            texts[keyword.decode("latin-1")] = text.decode("latin-1")
        position += 12 + length
    return texts


def contact_sheet(
    frames: Frames,
    *,
    columns: int | None = None,
    max_frames: int = 16,
    width: int = 1280,
    gap: int = 8,
    background: tuple[int, int, int] = (24, 24, 27),
) -> np.ndarray:
    """Lay frames of a clip out on one sheet, left to right and top to bottom.

    Args:
        frames: uint8 (F, H, W, 3), RGB.
        columns: Frames in a row; None makes the sheet about as wide as it is high.
        max_frames: Most frames to show; of longer clips evenly spaced ones, both ends included.
        width: Wanted width of the sheet, pixels; frames are never enlarged beyond 4 times.
        gap: Pixels between frames and around them.
        background: RGB of the gaps.

    Returns:
        uint8 (H, W, 3), RGB.

    Raises:
        ValueError: There are no frames, or `columns` or `max_frames` is below 1.
    """
    frames = np.asarray(frames)
    if frames.ndim != 4 or frames.shape[-1] != 3 or frames.dtype != np.uint8 or not len(frames):
        raise ValueError(
            f"frames have shape {frames.shape} and dtype {frames.dtype}: "
            "expected uint8 (F, H, W, 3) with at least one frame."
        )
    if max_frames < 1 or (columns is not None and columns < 1):
        raise ValueError(
            f"columns {columns} and max_frames {max_frames} must be at least 1: give more."
        )
    shown = frames[
        np.linspace(0, len(frames) - 1, min(len(frames), max_frames)).round().astype(int)
    ]
    _, height_in, width_in, _ = shown.shape
    if columns is None:
        columns = math.ceil(math.sqrt(len(shown) * height_in / width_in))
    columns = min(max(columns, 1), len(shown))
    rows = -(-len(shown) // columns)

    scale = min((width - gap * (columns + 1)) / (columns * width_in), 4.0)
    cell_w, cell_h = max(1, round(width_in * scale)), max(1, round(height_in * scale))
    interpolation = cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC
    step_y, step_x = cell_h + gap, cell_w + gap
    sheet = np.empty((gap + rows * step_y, gap + columns * step_x, 3), np.uint8)
    sheet[:] = background
    for index, frame in enumerate(shown):
        top = gap + index // columns * step_y
        left = gap + index % columns * step_x
        resized = cv2.resize(frame, (cell_w, cell_h), interpolation=interpolation)
        sheet[top : top + cell_h, left : left + cell_w] = resized
    return sheet


def write_contact_sheet(
    path: str | Path,
    frames: Frames,
    *,
    columns: int | None = None,
    max_frames: int = 16,
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Write a contact sheet as a PNG; see `contact_sheet` and `write_image`."""
    sheet = contact_sheet(frames, columns=columns, max_frames=max_frames)
    write_image(path, sheet, metadata=metadata)


def _text_chunk(keyword: str, text: str) -> bytes:
    """Return an uncompressed iTXt chunk: keyword, flags, no language, UTF-8 text."""
    name = keyword.encode("latin-1", "replace")[:79]
    body = b"iTXt" + name + b"\0\0\0\0\0" + text.encode()
    return struct.pack(">I", len(body) - 4) + body + struct.pack(">I", zlib.crc32(body))
