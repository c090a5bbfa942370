"""Frames of a clip that are given and not made: how many there may be.

Source: this project. The reference starts a clip from one image; the weights were trained for that,
and for no last frame.
"""

from __future__ import annotations

from .shapes import RELEASED, Geometry, check_frames


def check_overlap(overlap: int, num_frames: int, geometry: Geometry = RELEASED) -> None:
    """Refuse an overlap that cannot be cut off the end of a clip.

    Args:
        overlap: Last frames of the clip that the new one begins with.
        num_frames: Frames of the clip.
        geometry: Of the model.

    Raises:
        ValueError: `overlap` is not frame_step k + 1, or nothing of the clip comes before it.
    """
    try:
        check_frames(overlap, geometry)
    except ValueError as error:
        raise ValueError(f"overlap: {error}") from error
    if overlap >= num_frames:
        raise ValueError(
            f"overlap: {overlap} frames are to be repeated and the clip has {num_frames}; "
            "choose fewer, or make image to video of a single image."
        )


def check_room(
    num_frames: int, *, first: int, last: bool = False, geometry: Geometry = RELEASED
) -> None:
    """Refuse a clip in which everything is given.

    Args:
        num_frames: Frames of the clip.
        first: Frames given at its start, frame_step k + 1.
        last: Whether its last frame is given, which takes the last frame_step frames.
        geometry: Of the model.

    Raises:
        ValueError: Nothing is left to make.
    """
    step = geometry.frame_step
    least = first + step * (1 + last)
    if num_frames < least:
        what = "frame" if first == 1 else f"{first} frames"
        between = f"between the first {what} and the last" if last else f"after the first {what}"
        raise ValueError(
            f"{num_frames} frames leave nothing to make {between}; choose {least} or more."
        )
