"""The synthetic world: what it draws, says and holds out."""

from __future__ import annotations

import itertools
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest

from kandinsky_core.training.world import (
    BACKGROUNDS,
    CAMERAS,
    COLORS,
    MOTIONS,
    SHAPES,
    SIZES,
    ObjectSpec,
    Scene,
    caption,
    heldout_captions,
    heldout_checksum,
    is_held_out,
    render,
    sample_scene,
    vocabulary,
    words,
)
from kandinsky_core.training.world.heldout import held_out_images, held_out_motions
from kandinsky_core.training.world.lexicon import inflect
from kandinsky_core.training.world.scene import is_clear


def object_pixels(frame, color):
    """Positions (x, y) in [-1, 1] of the pixels of exactly that colour."""
    rows, columns = np.nonzero((frame == np.array(COLORS[color])).all(axis=2))
    half = frame.shape[0] / 2
    return (columns + 0.5) / half - 1, (rows + 0.5) / half - 1


@pytest.mark.parametrize("size", [64, 128, 256])
def test_a_square_fills_its_area_around_its_centre_at_every_resolution(size):
    spec = ObjectSpec("square", "red", "large", x=0.2, y=-0.3)
    x, y = object_pixels(render(Scene("gray", objects=(spec,)), size, 1)[0], "red")
    side = 1.2 * 2**0.5 * SIZES["large"]
    assert x.mean() == pytest.approx(0.2, abs=1 / size)
    assert y.mean() == pytest.approx(-0.3, abs=1 / size)
    # Exactly coloured pixels are the fully covered ones: up to one pixel less on each side.
    assert side - 4 / size <= np.ptp(x) + 2 / size <= side + 1e-6


@pytest.mark.parametrize(
    ("motion", "way"), [("left", (-1, 0)), ("right", (1, 0)), ("up", (0, -1)), ("down", (0, 1))]
)
@pytest.mark.parametrize("num_frames", [2, 17, 25])
def test_every_clip_length_shows_the_whole_motion(motion, way, num_frames):
    spec = ObjectSpec("circle", "blue", "small", motion, travel=0.5)
    frames = render(Scene("white", objects=(spec,)), 128, num_frames)
    assert frames.shape == (num_frames, 128, 128, 3) and frames.dtype == np.uint8
    (x0, y0), (x1, y1) = (object_pixels(frame, "blue") for frame in (frames[0], frames[-1]))
    moved = (x1.mean() - x0.mean(), y1.mean() - y0.mean())
    assert moved == pytest.approx((0.5 * way[0], 0.5 * way[1]), abs=0.01)


def test_an_image_is_the_first_frame_of_the_clip():
    scene = sample_scene(np.random.default_rng(3), num_objects=2)
    np.testing.assert_array_equal(render(scene, num_frames=1)[0], render(scene, num_frames=17)[0])


def test_orbit_closes_and_bounce_returns():
    for motion in ("orbit", "bounce"):
        spec = ObjectSpec("star", "pink", "small", motion, travel=0.3)
        frames = render(Scene("black", objects=(spec,)))
        np.testing.assert_array_equal(frames[0], frames[-1])
        assert (frames[0] != frames[8]).any()


def test_growth_rotation_and_edges():
    grown = render(Scene("white", objects=(ObjectSpec("circle", "green", "small", "grow"),)))
    areas = [object_pixels(frame, "green")[0].size for frame in grown]
    assert areas == sorted(areas) and areas[-1] > 2 * areas[0]
    # Turning a pixel-symmetric square by less than its symmetry keeps the area, not the picture.
    turned = render(Scene("white", objects=(ObjectSpec("square", "green", "large", "rotate"),)))
    assert (turned[0] != turned[-1]).any()
    edge = turned[8].reshape(-1, 3)
    assert len(np.unique(edge, axis=0)) > 60  # anti-aliased


def test_a_pan_moves_the_texture_and_a_still_camera_keeps_it():
    still, panned = (render(Scene("beige", camera)) for camera in ("still", "pan_right"))
    np.testing.assert_array_equal(still[0], still[-1])
    np.testing.assert_array_equal(still[0], panned[0])
    shift = round(0.42 * 64)  # the camera goes right, so the world goes left
    difference = panned[-1][:, :-shift].astype(int) - panned[0][:, shift:]
    assert np.abs(difference).max() <= 2


def test_scenes_stay_inside_apart_and_cover_every_value():
    rng = np.random.default_rng(0)
    seen = Counter()
    for index in range(300):
        scene = sample_scene(rng, num_objects=1 + index % 20 // 18 + index % 20 // 19)
        assert is_clear(scene)
        moving_camera = scene.camera != "still"
        assert not (moving_camera and any(spec.motion != "still" for spec in scene.objects))
        assert len({spec.color for spec in scene.objects}) == len(scene.objects)
        seen.update([scene.camera + " camera", scene.background])
        for spec in scene.objects:
            seen.update([spec.shape, spec.color, spec.size, spec.motion])
    cameras = [name + " camera" for name in CAMERAS]
    assert set(seen) == {*SHAPES, *COLORS, *SIZES, *MOTIONS, *BACKGROUNDS, *cameras}


def test_overlapping_or_leaving_objects_are_not_clear():
    spec = ObjectSpec("circle", "red", "small")
    assert is_clear(Scene("gray", objects=(spec,)))
    assert not is_clear(Scene("gray", objects=(replace(spec, x=0.9),)))
    assert not is_clear(Scene("gray", objects=(spec, replace(spec, x=0.4))))
    # They are apart at both ends and meet on the way.
    passing = replace(spec, x=-0.7, motion="right", travel=1.4)
    assert not is_clear(Scene("gray", objects=(spec, passing)))


def test_wrong_names_are_one_clear_sentence():
    with pytest.raises(ValueError, match="Unknown color 'mauve'; choose one of red"):
        ObjectSpec("circle", "mauve", "small")
    with pytest.raises(ValueError, match="circle cannot rotate"):
        ObjectSpec("circle", "red", "small", "rotate")
    with pytest.raises(ValueError, match="num_objects must be 1, 2 or 3, got 4"):
        sample_scene(np.random.default_rng(0), num_objects=4)


NAMES = {
    "red": ("red", "scarlet", "красн", "ал"),
    "cyan": ("cyan", "turquoise", "light", "голуб", "бирюзов"),
    "star": ("star", "звезд", "звёзд"),
    "circle": ("circle", "disc", "disk", "ball", "круг", "круж", "шар", "диск"),
    "rotate": ("rotat", "spin", "turn", "вращ", "крут", "поворач"),
    "left": ("left", "влево", "налево"),
}


@pytest.mark.parametrize("language", ["en", "ru"])
def test_captions_name_what_moves_and_images_name_no_motion(language):
    rng = np.random.default_rng(1)
    for shape, color, motion in [("star", "red", "rotate"), ("circle", "cyan", "left")]:
        scene = sample_scene(rng, shape=shape, color=color, motion=motion)
        texts = {caption(scene, rng, language) for _ in range(200)}
        assert len(texts) > 50
        for text in texts:
            # "from right to left" and "справа налево" end with the direction.
            for value in (shape, color, motion):
                assert any(w.startswith(NAMES[value]) for w in words(text)), (value, text)
        for text in (caption(scene, rng, language, image=True) for _ in range(100)):
            assert not any(w.startswith(NAMES[motion]) for w in words(text)), text


def test_the_camera_is_named_exactly_when_it_moves():
    rng = np.random.default_rng(2)
    for camera, language in itertools.product(CAMERAS, ["en", "ru"]):
        scene = Scene("gray", camera, (ObjectSpec("circle", "red", "small"),))
        named = ["camera" if language == "en" else "камера"]
        for _ in range(30):
            text = caption(scene, rng, language)
            assert (set(named) <= set(words(text))) == (camera != "still"), text


def test_russian_agrees_in_gender_and_case():
    assert [inflect("красный", "f", case) for case in ("nom", "gen", "ins")] == [
        "красная", "красной", "красной",
    ]  # fmt: skip
    assert inflect("синий", "m", "ins") == "синим" and inflect("синий", "f", "nom") == "синяя"
    assert inflect("маленький", "m", "gen") == "маленького"
    assert inflect("маленький", "f", "nom") == "маленькая"
    assert (
        inflect("большой", "m", "ins") == "большим" and inflect("большой", "f", "gen") == "большой"
    )
    rng = np.random.default_rng(4)
    star = Scene("gray", objects=(ObjectSpec("star", "blue", "medium"),))
    texts = " ".join(caption(star, rng, "ru", image) for image in (False, True) for _ in range(300))
    assert "со звездой" not in texts.replace("синей", "")  # the colour always stands between
    assert " с средней" not in texts and "со средней синей зв" in texts
    assert "средняя синяя звезда" in texts and "синий звезда" not in texts


def test_vocabulary_is_exactly_the_words_in_use():
    rng = np.random.default_rng(5)
    used = set()
    for index in range(2500):
        scene = sample_scene(rng, num_objects=1 + (index % 40 == 0), camera_share=0.3)
        for language in ("en", "ru"):
            used.update(words(caption(scene, rng, language, image=index % 4 == 0)))
    listed = vocabulary()
    assert used <= set(listed)
    # Rare forms may stay unseen in a sample, unused words may not pile up.
    assert len(set(listed) - used) <= 5
    assert list(listed) == sorted(set(listed)) and len(listed) < 600


def test_held_out_set_is_a_seventh_and_leaves_every_pair_to_training():
    held = held_out_motions()
    assert 0.12 < len(held) / (4 * 8 * 11 - 8) < 0.16
    for column, table in enumerate((SHAPES, COLORS, MOTIONS)):
        counts = Counter(triple[column] for triple in held)
        assert set(counts) == set(table) and min(counts.values()) >= 3
    valid = {
        (shape, color, motion)
        for shape, color, motion in itertools.product(SHAPES, COLORS, MOTIONS)
        if (shape, motion) != ("circle", "rotate")
    }
    for pair in itertools.combinations(range(3), 2):
        every = {tuple(t[i] for i in pair) for t in valid}
        assert every == {tuple(t[i] for i in pair) for t in valid - held}
    assert {t[2] for t in held_out_images()} == set(BACKGROUNDS)


def test_a_scene_is_held_out_when_any_object_is():
    shape, color, motion = sorted(held_out_motions())[0]
    free = next(name for name in BACKGROUNDS if (shape, color, name) not in held_out_images())
    rng = np.random.default_rng(0)
    held = sample_scene(rng, shape=shape, color=color, motion=motion, background=free)
    assert is_held_out(held)
    still = replace(held, objects=(replace(held.objects[0], motion="still"),))
    assert is_held_out(still) == ((shape, color, "still") in held_out_motions())
    assert is_held_out(replace(still, objects=still.objects + held.objects))
    background = next(b for s, c, b in sorted(held_out_images()) if (s, c) == (shape, color))
    assert is_held_out(replace(still, background=background))


@pytest.mark.parametrize("task", ["t2v", "i2v", "t2i"])
def test_held_out_questions_are_held_out_balanced_and_in_both_languages(task):
    questions = heldout_captions(task=task)
    assert len(questions) == 200 and all(is_held_out(question.scene) for question in questions)
    assert Counter(question.language for question in questions) == {"en": 100, "ru": 100}
    assert len({question.seed for question in questions}) == 200
    assert heldout_captions(16, task=task) == questions[:16]
    shapes = Counter(question.scene.objects[0].shape for question in questions)
    assert min(shapes.values()) >= 40
    last = [q.scene.background if task == "t2i" else q.scene.objects[0].motion for q in questions]
    counts = Counter(last)
    assert max(counts.values()) - min(counts.values()) <= 1


def test_held_out_checksum_is_pinned():
    assert heldout_checksum() == "f5bb0d4782583f27eda2f36cbd3bf2ee399793ceea6901ec7e99b0e7214b71fa"
