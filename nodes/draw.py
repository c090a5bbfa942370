"""Pictures of tables of numbers, as uint8 (H, W, 3) RGB, with numpy and OpenCV alone."""

from __future__ import annotations

import cv2
import numpy as np

MARGIN = 40
"""Pixels around a table, for its labels."""
BACKGROUND = 24
MISSING = (90, 90, 90)
TEXT = (230, 230, 230)
LINE = (200, 60, 60)


def draw_shares(shares: np.ndarray, title: str, x_label: str, y_label: str) -> np.ndarray:
    """Draw a table of shares as coloured cells, dark 0 to bright 1.

    Args:
        shares: (rows, columns) in [0, 1]; NaN where nothing is known.
        title: Above it.
        x_label: What the columns are.
        y_label: What the rows are.

    Returns:
        RGB picture.
    """
    known = ~np.isnan(shares)
    levels = (np.where(known, shares, 0) * 255).round().astype(np.uint8)
    cells = cv2.cvtColor(cv2.applyColorMap(levels, cv2.COLORMAP_VIRIDIS), cv2.COLOR_BGR2RGB)
    cells[~known] = MISSING
    return _frame(_enlarge(cells), title, x_label, y_label)


def draw_block_map(kept: np.ndarray, blocks_per_frame: int, title: str) -> np.ndarray:
    """Draw which blocks (columns) each block (rows) attends to; lines divide latent frames.

    Args:
        kept: Boolean (Q, Q).
        blocks_per_frame: Blocks of one latent frame.
        title: Above it.

    Returns:
        RGB picture.
    """
    cells = _enlarge(np.repeat(kept[..., None], 3, 2).astype(np.uint8) * 255)
    cell = cells.shape[0] // len(kept)
    for block in range(blocks_per_frame, len(kept), blocks_per_frame):
        cells[block * cell] = LINE
        cells[:, block * cell] = LINE
    return _frame(cells, title, "blocks of keys", "blocks of queries")


def draw_attended(frames: np.ndarray, kept: np.ndarray, tile: tuple[int, int, int]) -> np.ndarray:
    """Show on the pictures which tiles a tile attends to: those as they are, the others dark.

    Args:
        frames: uint8 (T, H, W, 3), one picture for each latent frame.
        kept: Boolean (T, h, w), tiles that are attended to; tiles may span several latent frames.
        tile: (t, h, w) of the tile that attends, outlined.

    Returns:
        uint8 (T, H, W, 3).
    """
    count, height, width = frames.shape[:3]
    rows = np.arange(height) * kept.shape[1] // height
    columns = np.arange(width) * kept.shape[2] // width
    times = np.arange(count) * kept.shape[0] // count
    seen = kept[times][:, rows][:, :, columns]  # (T, H, W)
    shown = np.where(seen[..., None], frames, frames // 4)
    t, h, w = tile
    own_rows, own_columns = np.flatnonzero(rows == h), np.flatnonzero(columns == w)
    for index in np.flatnonzero(times == t):
        cv2.rectangle(
            picture := np.ascontiguousarray(shown[index]),
            (int(own_columns[0]), int(own_rows[0])),
            (int(own_columns[-1]), int(own_rows[-1])),
            LINE,
            max(1, height // 128),
        )
        shown[index] = picture
    return shown


def _enlarge(cells: np.ndarray, wanted: int = 512) -> np.ndarray:
    """Repeat cells until the longer side has about `wanted` pixels."""
    times = max(1, wanted // max(cells.shape[:2]))
    return cells.repeat(times, 0).repeat(times, 1)


def _frame(cells: np.ndarray, title: str, x_label: str, y_label: str) -> np.ndarray:
    font, size = cv2.FONT_HERSHEY_SIMPLEX, 0.45
    widest = max(cv2.getTextSize(text, font, size, 1)[0][0] for text in (title, x_label))
    tallest = cv2.getTextSize(y_label, font, size, 1)[0][0]
    height = max(cells.shape[0], tallest) + 2 * MARGIN
    width = max(cells.shape[1], widest) + 2 * MARGIN
    picture = np.full((height, width, 3), BACKGROUND, np.uint8)
    picture[MARGIN : MARGIN + cells.shape[0], MARGIN : MARGIN + cells.shape[1]] = cells
    cv2.putText(picture, title, (MARGIN, MARGIN - 14), font, size, TEXT, 1, cv2.LINE_AA)
    cv2.putText(picture, x_label, (MARGIN, height - 14), font, size, TEXT, 1, cv2.LINE_AA)
    turned = np.rot90(picture, -1).copy()  # its first row is the left column, read upwards
    place = (height - MARGIN - tallest, MARGIN - 14)
    cv2.putText(turned, y_label, place, font, size, TEXT, 1, cv2.LINE_AA)
    return np.ascontiguousarray(np.rot90(turned))
