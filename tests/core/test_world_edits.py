"""Edits of the synthetic world: what they change, how they are asked for, and their judge."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest

from kandinsky_core.training.world import (
    EDIT_KINDS,
    Edit,
    ObjectSpec,
    Scene,
    edit_vocabulary,
    held_out_edits,
    instruct,
    judge_edit,
    measure,
    render,
    sample_edit,
    sample_training_edit,
    vocabulary,
    words,
)
from kandinsky_core.training.world.heldout import is_held_out_image

RED = ObjectSpec("circle", "red", "medium", x=-0.45, y=-0.4)
BLUE = ObjectSpec("square", "blue", "medium", x=0.45, y=0.4)
BEFORE = Scene("beige", objects=(RED, BLUE))


def result(edit: Edit, scene: Scene) -> dict[str, bool]:
    return judge_edit(measure(render(scene, 128, 1)), edit)


def becomes(kind: str, *objects: ObjectSpec, background: str = "beige") -> Edit:
    direction = "right" if kind == "move" else None
    return Edit(kind, BEFORE, Scene(background, objects=objects), direction)


GREEN, STAR, MOVED = replace(RED, color="green"), replace(RED, shape="star"), replace(RED, x=0.15)
EDITS = {
    "recolor": becomes("recolor", GREEN, BLUE),
    "reshape": becomes("reshape", STAR, BLUE),
    "remove": becomes("remove", BLUE),
    "move": becomes("move", MOVED, BLUE),
    "background": becomes("background", RED, BLUE, background="navy"),
}


@pytest.mark.parametrize("kind", EDIT_KINDS)
def test_judge_tells_done_from_not_done(kind):
    edit = EDITS[kind]
    assert result(edit, edit.target) == {"edited": True, "kept": True, "all": True}
    assert result(edit, edit.source) == {"edited": False, "kept": True, "all": False}


@pytest.mark.parametrize(
    ("kind", "objects", "background", "edited"),
    [
        ("recolor", (GREEN, replace(BLUE, color="pink")), "beige", True),
        ("recolor", (GREEN, BLUE), "black", True),
        ("recolor", (replace(GREEN, x=0.4), BLUE), "beige", True),
        ("recolor", (replace(GREEN, size="large"), BLUE), "beige", True),
        ("recolor", (GREEN,), "beige", True),
        ("reshape", (replace(STAR, color="green"), BLUE), "beige", True),
        ("remove", (replace(BLUE, shape="triangle"),), "beige", True),
        ("remove", (RED,), "beige", True),
        ("move", (replace(RED, y=0.2), replace(BLUE, y=-0.4)), "beige", False),
        ("background", (GREEN, BLUE), "navy", True),
        ("background", (GREEN, BLUE), "white", False),
    ],
)
def test_judge_sees_what_was_not_asked_for(kind, objects, background, edited):
    verdict = result(EDITS[kind], Scene(background, objects=objects))
    assert verdict == {"edited": edited, "kept": False, "all": False}


def test_edits_change_one_thing_and_are_not_held_out():
    rng = np.random.default_rng(0)
    kinds = Counter()
    for _ in range(80):
        edit = sample_training_edit(rng)
        kinds[edit.kind] += 1
        assert not is_held_out_image(edit.source) and not is_held_out_image(edit.target)
        before, after = edit.source, edit.target
        assert (before.background != after.background) == (edit.kind == "background")
        if edit.kind == "remove":
            assert after.objects == before.objects[1:] != ()
            continue
        assert before.objects[1:] == after.objects[1:]
        old, new = before.objects[0], after.objects[0]
        changed = {name for name in vars(old) if getattr(old, name) != getattr(new, name)}
        expected = {"recolor": {"color"}, "reshape": {"shape"}, "background": set()}
        if edit.kind == "move":
            (axis,) = changed
            step = getattr(new, axis) - getattr(old, axis)
            way = {"left": ("x", -0.6), "right": ("x", 0.6), "up": ("y", -0.6), "down": ("y", 0.6)}
            assert (axis, pytest.approx(step)) == way[edit.direction]
        else:
            assert changed == expected[edit.kind]
    assert set(kinds) == set(EDIT_KINDS)


@pytest.mark.parametrize(
    ("language", "named"),
    [
        ("en", {"recolor": "green", "reshape": "star", "move": "right", "background": "navy"}),
        ("ru", {"recolor": "зел", "reshape": "звё", "move": "прав", "background": "син"}),
    ],
)
def test_instruction_names_the_object_and_the_change(language, named):
    rng = np.random.default_rng(1)
    red = ("red", "scarlet") if language == "en" else ("крас", "ал")
    for kind, edit in EDITS.items():
        texts = {instruct(edit, rng, language) for _ in range(150)}
        assert len(texts) > 20
        for text in texts:
            said = words(text.replace("звез", "звё"))
            word = named.get(kind)
            if word == "navy":  # dark blue
                assert {"navy", "dark"} & set(said), text
            elif word is not None:
                assert any(word in each for each in said), text
            if kind != "background":
                assert any(each.startswith(red) for each in said), text


def test_russian_instructions_agree_in_gender_and_case():
    rng = np.random.default_rng(2)
    star = Scene("gray", objects=(ObjectSpec("star", "blue", "medium"), RED))
    edit = Edit(
        "recolor", star, replace(star, objects=(replace(star.objects[0], color="red"), RED))
    )
    text = " ".join(instruct(edit, rng, "ru") for _ in range(300))
    assert "сделай синюю звезду красной" in text
    assert "измени цвет синей звезды на красный" in text
    assert "синяя звезда будет красной" in text
    assert "синий звезд" not in text and "синюю звезда" not in text


def test_unknown_language_is_refused():
    with pytest.raises(ValueError, match="Unknown language 'de'"):
        instruct(EDITS["move"], np.random.default_rng(0), "de")


def test_edit_vocabulary_is_what_instructions_add():
    rng = np.random.default_rng(3)
    used = set()
    for index in range(250):
        edit = sample_edit(rng, EDIT_KINDS[index % len(EDIT_KINDS)])
        for language in ("en", "ru"):
            used.update(word for _ in range(12) for word in words(instruct(edit, rng, language)))
    new, known = set(edit_vocabulary()), set(vocabulary())
    assert not new & known
    assert used <= new | known
    assert len(new - used) <= 3


def test_held_out_edits_are_about_held_out_combinations():
    questions = held_out_edits(50)
    assert held_out_edits(10) == questions[:10]
    assert Counter(question.edit.kind for question in questions) == dict.fromkeys(EDIT_KINDS, 10)
    assert Counter(question.language for question in questions) == {"en": 25, "ru": 25}
    for question in questions:
        edit = question.edit
        shown = edit.source if edit.kind in ("remove", "move") else edit.target
        assert is_held_out_image(replace(shown, objects=shown.objects[:1]))
