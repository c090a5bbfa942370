"""Words and templates of the captions, English and Russian: the data of ``captions``."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Literal, NamedTuple

Gender = Literal["m", "f"]
Case = Literal["nom", "gen", "ins"]

EN_COLORS: dict[str, tuple[str, ...]] = {
    "red": ("red", "red", "red", "scarlet"),
    "orange": ("orange",),
    "yellow": ("yellow",),
    "green": ("green",),
    "cyan": ("cyan", "cyan", "turquoise", "light blue"),
    "blue": ("blue",),
    "purple": ("purple", "purple", "violet"),
    "pink": ("pink",),
}
EN_SHAPES: dict[str, tuple[str, ...]] = {
    "circle": ("circle", "circle", "disc", "disk", "ball"),
    "square": ("square", "square", "square", "box"),
    "triangle": ("triangle",),
    "star": ("star", "star", "star", "five-pointed star"),
}
EN_SIZES: dict[str, tuple[str, ...]] = {
    "small": ("small", "small", "little", "tiny"),
    "medium": ("medium", "medium-sized", "mid-sized"),
    "large": ("large", "large", "big", "huge"),
}
EN_BACKGROUNDS: dict[str, tuple[str, ...]] = {
    "white": ("a white background",),
    "beige": ("a beige background", "a beige background", "a sand background"),
    "gray": ("a gray background", "a grey background"),
    "brown": ("a brown background",),
    "navy": ("a navy background", "a navy background", "a dark blue background"),
    "black": ("a black background", "a black background", "a dark background"),
}


def _verbs(*names: str, tail: str = "", tails: tuple[str, ...] = ()) -> tuple[tuple[str, str], ...]:
    """Return (present, gerund) pairs: every "moves/moving" of ``names`` with every tail."""
    pairs = []
    for name, end in itertools.product(names, tails or (tail,)):
        stem, gerund = name.split("/")
        pairs.append((f"{stem} {end}".rstrip(), f"{gerund} {end}".rstrip()))
    return tuple(pairs)


_GO = (
    "moves/moving",
    "moves/moving",
    "slides/sliding",
    "goes/going",
    "drifts/drifting",
    "floats/floating",
    "travels/traveling",
)

EN_MOTIONS: dict[str, tuple[tuple[str, str], ...]] = {
    "still": (
        *_verbs("stands/standing", "stays/staying", "sits/sitting", tail="still"),
        *_verbs("stays/staying", tail="in place"),
        *_verbs("remains/remaining", tail="motionless"),
        ("does not move", "not moving"),
    ),
    "left": _verbs(*_GO, tails=("left", "to the left", "from right to left")),
    "right": _verbs(*_GO, tails=("right", "to the right", "from left to right")),
    "up": (*_verbs(*_GO, tails=("up", "upward", "upwards")), *_verbs("rises/rising")),
    "down": (
        *_verbs(*_GO, tails=("down", "downward", "downwards")),
        *_verbs("falls/falling", "sinks/sinking", tail="down"),
    ),
    "diagonal": _verbs(
        *_GO, tails=("diagonally", "diagonally", "along a diagonal", "along the diagonal")
    ),
    "grow": (
        *_verbs("grows/growing", "grows/growing", "expands/expanding", "enlarges/enlarging"),
        *_verbs("grows/growing", "gets/getting", "becomes/becoming", tails=("larger", "bigger")),
    ),
    "shrink": (
        *_verbs("shrinks/shrinking", "shrinks/shrinking", "contracts/contracting"),
        *_verbs("gets/getting", "becomes/becoming", tail="smaller"),
    ),
    "rotate": (
        *_verbs("rotates/rotating", "spins/spinning", "turns/turning", "rotates/rotating"),
        *_verbs(
            "rotates/rotating", "spins/spinning", "turns/turning", tails=("clockwise", "in place")
        ),
    ),
    "orbit": (
        *_verbs(
            "moves/moving", "goes/going", "travels/traveling", "flies/flying", tail="in a circle"
        ),
        *_verbs("orbits/orbiting", "circles/circling", "orbits/orbiting"),
        *_verbs("orbits/orbiting", "circles/circling", tails=("around", "around the center")),
    ),
    "bounce": (
        *_verbs("bounces/bouncing", "bounces/bouncing", "hops/hopping", "jumps/jumping"),
        *_verbs("bounces/bouncing", tails=("up and down", "off the floor")),
        ("falls and bounces back", "falling and bouncing back"),
        ("drops and bounces back", "dropping and bouncing back"),
    ),
}
EN_CAMERAS: dict[str, tuple[str, ...]] = {
    "pan_left": ("the camera pans left", "the camera pans to the left", "the camera moves left"),
    "pan_right": (
        "the camera pans right",
        "the camera pans to the right",
        "the camera moves right",
    ),
    "zoom_in": ("the camera zooms in", "the camera slowly zooms in", "the camera moves closer"),
    "zoom_out": ("the camera zooms out", "the camera slowly zooms out", "the camera moves away"),
}
EN_JOIN_CAMERA = (", ", " while ", " as ", " and ")

EN_IMAGE = ("{text}", "{text}", "an image of {text}", "a picture of {text}", "a drawing of {text}")
EN_IMAGE_PLACED = (
    "{text} on {place}", "{text} on {place}", "{text} against {place}", "on {place}, {text}",
    "an image of {text} on {place}", "a picture of {text} on {place}",
)  # fmt: skip
EN_VIDEO = ("{text}",)
EN_VIDEO_PLACED = (
    "{text} on {place}", "{text} on {place}", "on {place}, {text}", "{text} against {place}",
    "{text}, {place}",
)  # fmt: skip
EN_VIDEO_TITLED = ("{text}", "a video of {text}", "an animation of {text}", "a clip of {text}")
EN_VIDEO_TITLED_PLACED = (
    *EN_VIDEO_PLACED, "a video of {text} on {place}", "an animation of {text} on {place}",
)  # fmt: skip


class Noun(NamedTuple):
    """A Russian noun: its gender and its forms by case."""

    gender: Gender
    forms: dict[Case, str]


def _noun(gender: Gender, nom: str, gen: str, ins: str) -> Noun:
    return Noun(gender, {"nom": nom, "gen": gen, "ins": ins})


_CIRCLE = _noun("m", "круг", "круга", "кругом")
_SQUARE = _noun("m", "квадрат", "квадрата", "квадратом")
_STAR = _noun("f", "звезда", "звезды", "звездой")
RU_SHAPES: dict[str, tuple[Noun, ...]] = {
    "circle": (
        _CIRCLE,
        _CIRCLE,
        _noun("m", "шар", "шара", "шаром"),
        _noun("m", "диск", "диска", "диском"),
        _noun("m", "кружок", "кружка", "кружком"),
    ),
    "square": (_SQUARE, _SQUARE, _noun("m", "квадратик", "квадратика", "квадратиком")),
    "triangle": (_noun("m", "треугольник", "треугольника", "треугольником"),),
    "star": (
        _STAR,
        _STAR,
        _noun("f", "звёздочка", "звёздочки", "звёздочкой"),
        _noun("f", "звездочка", "звездочки", "звездочкой"),
    ),
}
# Adjectives in the masculine nominative; ``inflect`` makes the other forms.
RU_COLORS: dict[str, tuple[str, ...]] = {
    "red": ("красный", "красный", "красный", "алый"),
    "orange": ("оранжевый",),
    "yellow": ("жёлтый", "желтый"),
    "green": ("зелёный", "зеленый"),
    "cyan": ("голубой", "голубой", "бирюзовый"),
    "blue": ("синий",),
    "purple": ("фиолетовый", "фиолетовый", "лиловый"),
    "pink": ("розовый",),
}
RU_SIZES: dict[str, tuple[str, ...]] = {
    "small": ("маленький", "маленький", "небольшой"),
    "medium": ("средний",),
    "large": ("большой", "большой", "крупный"),
}
RU_BACKGROUNDS: dict[str, tuple[str, ...]] = {
    "white": ("на белом фоне",),
    "beige": ("на бежевом фоне", "на бежевом фоне", "на песочном фоне"),
    "gray": ("на сером фоне",),
    "brown": ("на коричневом фоне",),
    "navy": ("на тёмно-синем фоне", "на темно-синем фоне"),
    "black": ("на чёрном фоне", "на черном фоне"),
}
_RU_GO = ("движется", "движется", "едет", "плывёт", "плывет", "перемещается", "скользит")


def _each(verbs: tuple[str, ...], *tails: str) -> tuple[str, ...]:
    return tuple(f"{verb} {tail}" for verb, tail in itertools.product(verbs, tails))


RU_MOTIONS: dict[str, tuple[str, ...]] = {
    "still": (
        "стоит на месте", "неподвижно стоит", "остаётся на месте", "остается на месте",
        "не движется",
    ),
    "left": _each(_RU_GO, "влево", "налево", "справа налево"),
    "right": _each(_RU_GO, "вправо", "направо", "слева направо"),
    "up": (*_each(_RU_GO, "вверх", "наверх"), "поднимается", "поднимается вверх"),
    "down": (*_each(_RU_GO, "вниз"), "опускается", "опускается вниз", "падает вниз"),
    "diagonal": _each(_RU_GO, "по диагонали", "наискосок"),
    "grow": ("растёт", "растет", "увеличивается", "становится больше", "увеличивается в размере"),
    "shrink": ("уменьшается", "сжимается", "становится меньше", "уменьшается в размере"),
    "rotate": (
        "вращается", "вращается", "крутится", "поворачивается", "вращается на месте",
        "крутится на месте", "вращается по часовой стрелке", "поворачивается по часовой стрелке",
    ),
    "orbit": (
        "движется по кругу", "движется по кругу", "летит по кругу", "едет по кругу",
        "летает по кругу", "облетает центр",
    ),
    "bounce": (
        "подпрыгивает", "прыгает", "отскакивает", "падает и отскакивает", "прыгает вверх и вниз",
    ),
}  # fmt: skip
RU_CAMERAS: dict[str, tuple[str, ...]] = {
    "pan_left": ("камера движется влево", "камера поворачивается влево", "камера едет влево"),
    "pan_right": ("камера движется вправо", "камера поворачивается вправо", "камера едет вправо"),
    "zoom_in": ("камера приближается", "камера наезжает", "камера медленно приближается"),
    "zoom_out": ("камера отдаляется", "камера отъезжает", "камера медленно отдаляется"),
}
RU_JOIN_CAMERA = (", ", ", а ", ", и ")
RU_WHICH: dict[Gender, str] = {"m": "который", "f": "которая"}

# Templates with the case that their text stands in.
RU_IMAGE: tuple[tuple[str, Case], ...] = (
    ("{text}", "nom"), ("{text}", "nom"), ("изображение {text}", "gen"), ("рисунок {text}", "gen"),
    ("картинка с {text}", "ins"), ("картинка: {text}", "nom"),
)  # fmt: skip
RU_IMAGE_PLACED: tuple[tuple[str, Case], ...] = (
    ("{text} {place}", "nom"), ("{text} {place}", "nom"), ("{place} {text}", "nom"),
    ("изображение {text} {place}", "gen"), ("картинка с {text} {place}", "ins"),
)  # fmt: skip
RU_VIDEO = ("{text}", "{text}", "{text}", "видео, на котором {text}", "видео: {text}")
RU_VIDEO_PLACED = (
    "{text} {place}", "{text} {place}", "{place} {text}", "{text}, {place}",
    "видео, на котором {text} {place}",
)  # fmt: skip
RU_VIDEO_WITH = ("видео с {text}", "ролик с {text}", "анимация с {text}")

_HARD_STEM: dict[Gender, dict[Case, str]] = {
    "m": {"gen": "ого", "ins": "ым"},
    "f": {"nom": "ая", "gen": "ой", "ins": "ой"},
}
_SOFT_STEM: dict[Gender, dict[Case, str]] = {
    "m": {"gen": "его", "ins": "им"},
    "f": {"nom": "яя", "gen": "ей", "ins": "ей"},
}


def inflect(adjective: str, gender: Gender, case: Case) -> str:
    """Return a form of the Russian adjective given in the masculine nominative ("красный" ->
    "красной").

    Stems in -ний are soft; stems in г, к, х, ж, ш, ч, щ write и where others write ы.
    """
    if (gender, case) == ("m", "nom"):
        return adjective
    stem = adjective[:-2]
    ending = (_SOFT_STEM if adjective.endswith("ний") else _HARD_STEM)[gender][case]
    if ending == "ым" and stem[-1] in "гкхжшчщ":
        ending = "им"
    return stem + ending


def all_texts() -> Iterator[str]:
    """Yield every string a caption can be made of, template fields removed."""
    en = (EN_COLORS, EN_SHAPES, EN_SIZES, EN_BACKGROUNDS, EN_CAMERAS)
    ru = (RU_BACKGROUNDS, RU_MOTIONS, RU_CAMERAS)
    for options in itertools.chain.from_iterable(table.values() for table in (*en, *ru)):
        yield from options
    yield from itertools.chain.from_iterable(itertools.chain(*EN_MOTIONS.values()))
    for noun in itertools.chain(*RU_SHAPES.values()):
        yield from noun.forms.values()
    genders: tuple[Gender, ...] = ("m", "f")
    cases: tuple[Case, ...] = ("nom", "gen", "ins")
    for adjective in itertools.chain(*RU_COLORS.values(), *RU_SIZES.values()):
        for gender, case in itertools.product(genders, cases):
            yield inflect(adjective, gender, case)
    templates = itertools.chain(
        EN_JOIN_CAMERA, EN_IMAGE, EN_IMAGE_PLACED, EN_VIDEO_TITLED, EN_VIDEO_TITLED_PLACED,
        RU_JOIN_CAMERA, RU_VIDEO, RU_VIDEO_PLACED, RU_VIDEO_WITH, RU_WHICH.values(),
        (template for template, _ in RU_IMAGE + RU_IMAGE_PLACED),
    )  # fmt: skip
    for template in templates:
        yield template.format(text=" ", place=" ")
    yield from ("a", "an", "is", "and", "и", "а", "со")
