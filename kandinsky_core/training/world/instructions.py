"""Instructions for edits in English and Russian, from templates over the words of ``lexicon``."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from . import lexicon
from .captions import LANGUAGES, Language, vocabulary, words
from .edits import EDIT_KINDS, Edit, EditKind, held_out_edit
from .lexicon import Gender, Noun
from .sample import pick
from .scene import ObjectSpec

EN_EDITS: dict[EditKind, tuple[str, ...]] = {
    "recolor": (
        "make {object} {color}", "paint {object} {color}", "recolor {object} {color}",
        "change the color of {object} to {color}", "{object} should be {color}",
    ),
    "reshape": (
        "replace {object} with {shape}", "turn {object} into {shape}",
        "change {object} into {shape}", "put {shape} in place of {object}",
    ),
    "remove": (
        "remove {object}", "delete {object}", "erase {object}", "take {object} away",
        "get rid of {object}",
    ),
    "move": (
        "move {object} {where}", "shift {object} {where}", "slide {object} {where}",
        "push {object} {where}",
    ),
    "background": (
        "make the background {place}", "change the background to {place}",
        "replace the background with a {place} one", "the background should be {place}",
        "put everything on a {place} background",
    ),
}  # fmt: skip
EN_WHERE: dict[str, tuple[str, ...]] = {
    "left": ("left", "to the left"), "right": ("right", "to the right"),
    "up": ("up", "upward", "upwards"), "down": ("down", "downward", "downwards"),
}  # fmt: skip
EN_POLITE = "please "

RU_EDITS: dict[EditKind, tuple[str, ...]] = {
    "recolor": (
        "сделай {object} {colored}", "перекрась {object} в {color} цвет",
        "покрась {object} в {color} цвет", "измени цвет {of} на {color}",
        "пусть {whole} будет {colored}",
    ),
    "reshape": (
        "замени {object} на {shape}", "преврати {object} в {shape}",
        "поставь {shape} вместо {of}", "пусть вместо {of} будет {shape_whole}",
    ),
    "remove": ("убери {object}", "удали {object}", "сотри {object}"),
    "move": (
        "передвинь {object} {where}", "сдвинь {object} {where}", "перемести {object} {where}",
        "подвинь {object} {where}",
    ),
    "background": (
        "сделай фон {place_as}", "измени фон на {place}", "поменяй фон на {place}",
        "замени фон на {place}", "пусть фон будет {place_as}",
    ),
}  # fmt: skip
RU_WHERE: dict[str, tuple[str, ...]] = {
    "left": ("влево", "налево"), "right": ("вправо", "направо"),
    "up": ("вверх", "выше"), "down": ("вниз", "ниже"),
}  # fmt: skip
RU_PLACES: dict[str, tuple[str, ...]] = {
    "white": ("белый",), "beige": ("бежевый", "бежевый", "песочный"), "gray": ("серый",),
    "brown": ("коричневый",), "navy": ("тёмно-синий", "темно-синий"), "black": ("чёрный", "черный"),
}  # fmt: skip
RU_POLITE = "пожалуйста, "

POLITE_SHARE, PRONOUN_SHARE, SIZE_SHARE = 0.1, 0.15, 0.15
_FIELD = re.compile(r"\{\w+\}")


def instruct(edit: Edit, rng: np.random.Generator, language: Language = "en") -> str:
    """Ask for an edit in one of many phrasings.

    The object is called by its colour and shape, where it is alone sometimes by its shape only.

    Args:
        edit: What to ask for.
        rng: Chooses the phrasing.
        language: "en" or "ru".

    Raises:
        ValueError: For another language.
    """
    if language not in LANGUAGES:
        raise ValueError(f"Unknown language {language!r} of an instruction; choose 'en' or 'ru'.")
    fields = (_english if language == "en" else _russian)(edit, rng)
    templates, polite = (EN_EDITS, EN_POLITE) if language == "en" else (RU_EDITS, RU_POLITE)
    text = pick(rng, templates[edit.kind]).format(**fields)
    if rng.random() < POLITE_SHARE:
        text = polite + text
    return text + "." if rng.random() < 0.3 else text


def edit_vocabulary() -> tuple[str, ...]:
    """Return the words of instructions that no caption has, sorted; `vocabulary` has the others."""
    known = set(vocabulary())
    return tuple(sorted({word for text in _all_texts() for word in words(text)} - known))


def _edited(edit: Edit) -> ObjectSpec:
    """Return the edited object as it should be; where it is removed, as it was."""
    return edit.subject if edit.kind == "remove" else edit.target.objects[0]


def _english(edit: Edit, rng: np.random.Generator) -> dict[str, str]:
    spec, new = edit.subject, _edited(edit)
    is_alone = len(edit.source.objects) == 1
    called = [pick(rng, lexicon.EN_SHAPES[spec.shape])]
    if not is_alone or rng.random() < 0.7:
        called.insert(0, pick(rng, lexicon.EN_COLORS[spec.color]))
    if rng.random() < SIZE_SHARE:
        called.insert(0, pick(rng, lexicon.EN_SIZES[spec.size]))
    reference = "the " + " ".join(called)
    shape = pick(rng, lexicon.EN_SHAPES[new.shape])
    place = pick(rng, lexicon.EN_BACKGROUNDS[edit.target.background])
    return {
        "object": "it" if is_alone and rng.random() < PRONOUN_SHARE else reference,
        "color": pick(rng, lexicon.EN_COLORS[new.color]),
        "shape": f"a {shape}",
        "where": pick(rng, EN_WHERE[edit.direction]) if edit.direction else "",
        "place": place.removeprefix("a ").removesuffix(" background"),
    }


def _russian(edit: Edit, rng: np.random.Generator) -> dict[str, str]:
    spec, new = edit.subject, _edited(edit)
    noun = pick(rng, lexicon.RU_SHAPES[spec.shape])
    adjectives = []
    if rng.random() < SIZE_SHARE:
        adjectives.append(pick(rng, lexicon.RU_SIZES[spec.size]))
    if len(edit.source.objects) > 1 or rng.random() < 0.7:
        adjectives.append(pick(rng, lexicon.RU_COLORS[spec.color]))
    color, shape = pick(rng, lexicon.RU_COLORS[new.color]), pick(rng, lexicon.RU_SHAPES[new.shape])
    place = pick(rng, RU_PLACES[edit.target.background])
    gender = noun.gender
    accusative = [*(accuse(word, gender) for word in adjectives), accuse_noun(noun)]
    genitive = [*(lexicon.inflect(word, gender, "gen") for word in adjectives), noun.forms["gen"]]
    plain = [*(lexicon.inflect(word, gender, "nom") for word in adjectives), noun.forms["nom"]]
    return {
        "object": " ".join(accusative),
        "of": " ".join(genitive),
        "whole": " ".join(plain),
        "color": color,
        "colored": lexicon.inflect(color, gender, "ins"),
        "shape": accuse_noun(shape),
        "shape_whole": shape.forms["nom"],
        "where": pick(rng, RU_WHERE[edit.direction]) if edit.direction else "",
        "place": place,
        "place_as": lexicon.inflect(place, "m", "ins"),
    }


def accuse(adjective: str, gender: Gender) -> str:
    """Return the accusative, for things, of a Russian adjective ("красный" -> "красную звезду")."""
    if gender == "m":
        return adjective
    return adjective[:-2] + ("юю" if adjective.endswith("ний") else "ую")


def accuse_noun(noun: Noun) -> str:
    """Return the accusative, for things, of a Russian noun ("звезда" -> "звезду")."""
    return noun.forms["nom"] if noun.gender == "m" else noun.forms["nom"][:-1] + "у"


def _all_texts() -> Iterator[str]:
    """Yield every string that an instruction can be made of, beside those of captions."""
    for templates in (*EN_EDITS.values(), *RU_EDITS.values()):
        yield from (_FIELD.sub(" ", template) for template in templates)
    yield from itertools.chain(*EN_WHERE.values(), *RU_WHERE.values(), (EN_POLITE, RU_POLITE))
    yield "it"
    for noun in itertools.chain(*lexicon.RU_SHAPES.values()):
        yield accuse_noun(noun)
    for adjective in itertools.chain(*lexicon.RU_COLORS.values(), *lexicon.RU_SIZES.values()):
        yield accuse(adjective, "f")
    for place in itertools.chain(*RU_PLACES.values()):
        yield from (place, lexicon.inflect(place, "m", "ins"))


@dataclass(frozen=True)
class EditQuestion:
    """One question of the held-out test of editing."""

    instruction: str
    edit: Edit
    seed: int
    """Seed of the noise from which the answer is generated."""
    language: Language


def held_out_edits(count: int = 200) -> list[EditQuestion]:
    """Return the first `count` questions of the test, the same on every machine: all kinds in turn,
    English and Russian, each about a held-out combination of shape, colour and background."""
    rng = np.random.Generator(np.random.PCG64(14))
    questions = []
    for number in range(count):
        turn, kind = divmod(number, len(EDIT_KINDS))
        edit = held_out_edit(rng, EDIT_KINDS[kind], number)
        language = LANGUAGES[(turn + kind) % len(LANGUAGES)]
        questions.append(EditQuestion(instruct(edit, rng, language), edit, 2000 + number, language))
    return questions
