"""The oracle: right on ground truth, through blur and noise, and not fooled by strangers."""

from __future__ import annotations

from dataclasses import replace

import cv2
import numpy as np
import pytest

from kandinsky_core.training.world import ObjectSpec, Scene, correct, measure, render
from kandinsky_core.training.world.accuracy import Tally, score_ground_truth, wilson_interval
from kandinsky_core.training.world.oracle import UNKNOWN


def assert_accurate(tally, floor):
    rows = {row: (num_right, num) for row, num_right, num in tally.rows()}
    weak = {row: hits for row, hits in rows.items() if hits[0] < floor * hits[1]}
    assert not weak, tally.table()


@pytest.mark.parametrize(
    ("num_clips", "options"),
    [
        (44, {}),
        (16, {"num_objects": 2}),
        (12, {"num_objects": 3}),
        (4, {"size": 256, "num_frames": 25}),
        (100, {"num_frames": 1}),
    ],
)
def test_ground_truth_is_read_right(num_clips, options):
    assert_accurate(score_ground_truth(num_clips, seed=7, **options), 0.99)


def test_blur_and_noise_like_a_vae_leave_it_right():
    assert_accurate(score_ground_truth(24, blur=1.0, noise=4.0, seed=8), 0.97)


SPEC = ObjectSpec("star", "red", "medium", "right", x=-0.3, travel=0.6)
SCENE = Scene("gray", objects=(SPEC,))


@pytest.mark.parametrize(
    ("row", "other"),
    [
        ("shape", replace(SPEC, shape="circle")),
        ("color", replace(SPEC, color="pink")),
        ("motion", replace(SPEC, motion="diagonal", heading=np.pi / 4)),
        ("size", replace(SPEC, size="small")),
    ],
)
def test_one_wrong_attribute_fails_its_row_alone(row, other):
    verdict = correct(measure(render(Scene("gray", objects=(other,)))), SCENE)
    assert not verdict.pop(row)
    assert verdict.pop("all") == (row == "size")
    assert all(verdict.values())


def test_missing_and_surplus_objects_are_counted():
    pair = Scene(
        "gray", objects=(replace(SPEC, y=-0.5), ObjectSpec("circle", "blue", "small", y=0.5))
    )
    empty = correct(measure(render(Scene("gray"))), SCENE)
    assert not any(empty[row] for row in ("count", "color", "shape", "motion", "all"))
    assert empty["background"] and empty["camera"]
    assert not correct(measure(render(SCENE)), pair)["all"]
    surplus = correct(measure(render(pair)), SCENE)
    assert surplus["all"] and not surplus["count"]
    swapped = replace(pair, objects=pair.objects[::-1])
    assert all(correct(measure(render(pair)), swapped).values())


def test_a_pan_is_no_motion_and_a_zoom_no_growth():
    spec = ObjectSpec("square", "cyan", "medium")
    for camera in ("pan_left", "pan_right", "zoom_in", "zoom_out"):
        found = measure(render(Scene("brown", camera, (spec,))))
        assert (found.camera, found.objects[0].motion) == (camera, "still")
    flat = np.full((17, 128, 128, 3), 34, np.uint8)  # no texture: growth cannot be a zoom
    for index, frame in enumerate(flat):
        cv2.circle(frame, (64, 64), 15 + index, (222, 42, 46), -1)
    found = measure(flat)
    assert (found.camera, found.objects[0].motion) == ("still", "grow")


@pytest.mark.parametrize(("travel", "motion"), [(0.17, "still"), (0.23, "right")])
def test_a_short_way_is_no_motion(travel, motion):
    """The border is 0.4 of the usual way of 0.5."""
    spec = replace(SPEC, travel=travel)
    assert measure(render(Scene("gray", objects=(spec,)))).objects[0].motion == motion


def test_without_texture_noise_is_no_camera_move():
    rng = np.random.default_rng(6)
    frames = 128 + rng.normal(0, 6, (17, 128, 128, 3))
    assert measure(np.round(frames).astype(np.uint8)).camera == "still"


def test_what_is_no_part_of_the_world_is_called_unknown():
    frames = np.full((17, 128, 128, 3), 34, np.uint8)
    for index, frame in enumerate(frames):
        x = 64 + round(24 * np.sin(index * np.pi / 8))  # to and fro sideways
        cv2.ellipse(frame, (x, 64), (32, 16), 0, 0, 360, (170, 170, 170), -1)
    item = measure(frames).objects[0]
    assert (item.shape, item.color, item.motion) == (UNKNOWN, UNKNOWN, UNKNOWN)


def test_a_single_image_has_no_motion():
    found = measure(render(SCENE, num_frames=1))
    assert found.camera is None and found.objects[0].motion is None
    verdict = correct(found, SCENE)
    assert all(verdict.values()) and "motion" not in verdict and "camera" not in verdict


def test_wrong_arrays_are_refused():
    with pytest.raises(ValueError, match=r"square.*\(17, 128, 64, 3\)"):
        measure(np.zeros((17, 128, 64, 3), np.uint8))
    with pytest.raises(ValueError, match="uint8, got float32"):
        measure(np.zeros((1, 64, 64, 3), np.float32))


def test_wilson_interval_matches_published_values():
    # Newcombe 1998, table I, method 3: 81 of 263, and 0 of 20.
    assert wilson_interval(81, 263) == pytest.approx((0.2553, 0.3662), abs=1e-4)
    assert wilson_interval(0, 20) == pytest.approx((0.0, 0.1611), abs=1e-4)
    assert wilson_interval(0, 0) == (0.0, 1.0)


def test_tally_gives_every_value_its_row():
    tally = Tally()
    tally.add(SCENE, {"shape": True, "motion": False, "count": True})
    assert tally.share("shape=star") == 1 and tally.share("motion=right") == 0
    assert "| motion=right | 0 | 1 | 0.0 |" in tally.table()
