"""Captions of scenes in English and Russian, from a small grammar over the tables of ``lexicon``.

A video caption always names colour, shape and motion of every object, and the camera move when
there is one; size and background are named about half the time. An image caption names no motion.
"""

from __future__ import annotations

import re
from typing import Literal

import numpy as np

from . import lexicon
from .lexicon import Case, Gender
from .sample import pick
from .scene import ObjectSpec, Scene

Language = Literal["en", "ru"]
LANGUAGES: tuple[Language, ...] = ("en", "ru")

_WORD = re.compile(r"[^\W_]+")
# Russian "с" becomes "со" before a sibilant and another consonant: "со звездой", "со средним".
_HARD_TO_SAY = re.compile(r"\bс (?=[сзшж][бвгджзклмнпрстфхцчшщ])")


def caption(
    scene: Scene,
    rng: np.random.Generator,
    language: Language = "en",
    image: bool = False,
    *,
    with_background: bool | None = None,
) -> str:
    """Describe ``scene`` in one of many phrasings.

    Args:
        scene: What is shown.
        rng: Chooses the phrasing.
        language: "en" or "ru".
        image: Describe a still picture (the first frame): no motion, no camera move.
        with_background: Whether the background is named; drawn when None.

    Raises:
        ValueError: For another language.
    """
    if language not in LANGUAGES:
        raise ValueError(f"Unknown caption language {language!r}; choose 'en' or 'ru'.")
    if with_background is None:
        with_background = rng.random() < 0.5
    with_size = rng.random() < 0.45
    compose = _english if language == "en" else _russian
    text = compose(scene, rng, image, with_size, with_background)
    text = _HARD_TO_SAY.sub("со ", text)
    return text + "." if rng.random() < 0.3 else text


def words(text: str) -> list[str]:
    """Return the lower-case words of ``text``: runs of letters and digits."""
    return _WORD.findall(text.lower())


def vocabulary() -> tuple[str, ...]:
    """Return every lower-case word that a caption can contain, in either language, sorted."""
    return tuple(sorted({word for text in lexicon.all_texts() for word in words(text)}))


def _english(
    scene: Scene, rng: np.random.Generator, image: bool, with_size: bool, with_background: bool
) -> str:
    bare = rng.random() < 0.2  # "red circle moving left", the way prompts are typed

    def noun_phrase(spec: ObjectSpec) -> str:
        adjectives = [pick(rng, lexicon.EN_COLORS[spec.color])]
        if with_size:
            adjectives.insert(0, pick(rng, lexicon.EN_SIZES[spec.size]))
        phrase = " ".join([*adjectives, pick(rng, lexicon.EN_SHAPES[spec.shape])])
        return phrase if bare else f"{'an' if phrase[0] in 'aeiou' else 'a'} {phrase}"

    place = pick(rng, lexicon.EN_BACKGROUNDS[scene.background]) if with_background else ""
    if image:
        text = _enumerate([noun_phrase(spec) for spec in scene.objects], "and")
        template = pick(rng, lexicon.EN_IMAGE_PLACED if place else lexicon.EN_IMAGE)
        return template.format(text=text, place=place)
    style = pick(rng, ("ing",) if bare else ("plain", "is", "ing"))
    clauses = []
    for spec in scene.objects:
        finite, gerund = pick(rng, lexicon.EN_MOTIONS[spec.motion])
        verb = {"plain": finite, "is": f"is {gerund}", "ing": gerund}[style]
        clauses.append(f"{noun_phrase(spec)} {verb}")
    text = _enumerate(clauses, "and")
    titled = lexicon.EN_VIDEO_TITLED if style == "ing" and not bare else lexicon.EN_VIDEO
    placed = (
        lexicon.EN_VIDEO_TITLED_PLACED
        if titled is not lexicon.EN_VIDEO
        else lexicon.EN_VIDEO_PLACED
    )
    text = pick(rng, placed if place else titled).format(text=text, place=place)
    if scene.camera != "still":
        text += pick(rng, lexicon.EN_JOIN_CAMERA) + pick(rng, lexicon.EN_CAMERAS[scene.camera])
    return text


def _russian(
    scene: Scene, rng: np.random.Generator, image: bool, with_size: bool, with_background: bool
) -> str:
    def noun_phrase(spec: ObjectSpec, case: Case) -> tuple[str, Gender]:
        noun = pick(rng, lexicon.RU_SHAPES[spec.shape])
        adjectives = [pick(rng, lexicon.RU_COLORS[spec.color])]
        if with_size:
            adjectives.insert(0, pick(rng, lexicon.RU_SIZES[spec.size]))
        inflected = [lexicon.inflect(word, noun.gender, case) for word in adjectives]
        return " ".join([*inflected, noun.forms[case]]), noun.gender

    place = pick(rng, lexicon.RU_BACKGROUNDS[scene.background]) if with_background else ""
    if image:
        template, case = pick(rng, lexicon.RU_IMAGE_PLACED if place else lexicon.RU_IMAGE)
        text = _enumerate([noun_phrase(spec, case)[0] for spec in scene.objects], "и")
        return template.format(text=text, place=place)
    relative = rng.random() < 0.25
    clauses = []
    for spec in scene.objects:
        verb = pick(rng, lexicon.RU_MOTIONS[spec.motion])
        if relative:  # "видео с красным кругом, который движется влево"
            phrase, gender = noun_phrase(spec, "ins")
            clauses.append(f"{phrase}, {lexicon.RU_WHICH[gender]} {verb}")
        else:
            clauses.append(f"{noun_phrase(spec, 'nom')[0]} {verb}")
    if relative:
        text = pick(rng, lexicon.RU_VIDEO_WITH).format(text=_enumerate(clauses, ", и"), place=place)
        if place:
            text += f", {place}"
    else:
        text = _enumerate(clauses, ", а" if len(clauses) == 2 else "и")
        template = pick(rng, lexicon.RU_VIDEO_PLACED if place else lexicon.RU_VIDEO)
        text = template.format(text=text, place=place)
    if scene.camera != "still":
        text += pick(rng, lexicon.RU_JOIN_CAMERA) + pick(rng, lexicon.RU_CAMERAS[scene.camera])
    return text


def _enumerate(parts: list[str], conjunction: str) -> str:
    """Return "a", "a and b" or "a, b and c"; a conjunction that begins with a comma brings its
    own."""
    if len(parts) == 1:
        return parts[0]
    joint = conjunction if conjunction.startswith(",") else f" {conjunction}"
    return f"{', '.join(parts[:-1])}{joint} {parts[-1]}"
