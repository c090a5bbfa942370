"""How many frames of a clip may be given, against the condition that is put into the latents."""

from __future__ import annotations

import pytest
import torch

from kandinsky_core.family import check_overlap, check_room
from kandinsky_core.flow import VisualCondition


@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize("first", [1, 5, 9])
def test_there_is_room_wherever_a_latent_frame_is_left_to_make(first: int, last: bool) -> None:
    frame = torch.ones(1, 1, 1, 1, 1)
    start = frame.expand(1, 1, (first + 3) // 4, 1, 1)
    condition = VisualCondition(start, last_frame=frame if last else None)
    found = []
    for num_frames in range(1, 22, 4):
        for check in (
            lambda n=num_frames: check_room(n, first=first, last=last),
            lambda n=num_frames: condition.impose(torch.zeros(1, 1, (n + 3) // 4, 1, 1)),
        ):
            try:
                check()
                found.append(True)
            except ValueError:
                found.append(False)
    assert found[::2] == found[1::2]
    assert set(found) == {False, True}


def test_too_short_a_clip_says_what_would_do() -> None:
    for given, sentence in (
        ({"first": 5}, "5 frames leave nothing to make after the first 5 frames; choose 9 or more"),
        (
            {"first": 1, "last": True},
            "5 frames leave nothing to make between the first frame and the last; choose 9 or more",
        ),
    ):
        with pytest.raises(ValueError, match=sentence):
            check_room(5, **given)
        check_room(9, **given)


def test_an_overlap_leaves_something_before_it() -> None:
    check_overlap(5, 6)
    with pytest.raises(ValueError, match="5 frames are to be repeated and the clip has 5"):
        check_overlap(5, 5)
    for wrong in (0, -3, 4):
        with pytest.raises(ValueError, match=r"overlap: .* must be 4k"):
            check_overlap(wrong, 20)
