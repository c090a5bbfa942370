"""What a person typed, settled with what a checkpoint was made for.

Every door (command line, nodes, planner) fills a `Typed` and calls `settle`, so that the same job
gets the same settings or the same sentence everywhere. Sentences name a quantity as readers know
it (steps, length, P), not an input of one door.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

from .settings import Attention, SamplingSettings, Task
from .shapes import Geometry, Size, VideoShape, check_frames, resolve_size
from .tasks import STILL_TASKS, check_task, default_task

SizeClass = Literal["auto", "small", "large"]
"""Sizes a checkpoint was trained at: the first class or the last; auto goes by the size."""
Orientation = Literal["auto", "landscape", "portrait", "square"]
"""Which of the trained sizes; auto takes the first."""

TABLE = "checkpoint table"
BEFORE = "set on the model before this node"
TYPED = "typed here"
ONE_FRAME = "an image is one frame"
_VALUES = (
    *("num_frames", "num_steps", "guidance_scale", "shift", "rope_scale"),
    *("attention", "nabla_p", "negative_prompt"),
)
"""Fields of `Typed` that replace those of `SamplingSettings`."""


@dataclass(frozen=True, kw_only=True)
class Typed:
    """What a person typed; what is left at None is as the checkpoint was made for."""

    task: Task | None = None
    """Text or image (first letter) to video or image (last); None goes by the model and by
    whether there is an image."""
    size_class: SizeClass = "auto"
    """Sizes and settings to use; auto goes by height and width, and is small without them."""
    orientation: Orientation = "auto"
    """Which of the trained sizes, where no size is given."""
    height: int | None = None
    """Pixels."""
    width: int | None = None
    """Pixels."""
    num_frames: int | None = None
    """Frames, 4k + 1; always 1 for images."""
    num_steps: int | None = None
    """Euler steps, at least 1."""
    guidance_scale: float | None = None
    """Classifier-free guidance; 1 turns it off."""
    shift: float | None = None
    """Warp of the times towards noise, above 0."""
    rope_scale: tuple[float, float, float] | None = None
    """Divisor of the rotary angles (t, h, w), above 0."""
    attention: Attention | None = None
    """Dense, or NABLA: sparse, for sizes that divide into its tiles."""
    nabla_p: float | None = None
    """Share of attention that NABLA's kept blocks must cover, in [0, 1]."""
    negative_prompt: str | None = None
    """What to guide away from."""


@dataclass(frozen=True)
class Settled:
    """Settings of one run, each value with its source."""

    task: Task
    """What is made from what."""
    settings: SamplingSettings
    """One size class; its only size and its `num_frames` are what will be made."""
    sources: Mapping[str, str]
    """Field of `settings` -> where its value comes from, if not from the checkpoint's table."""
    trained: SamplingSettings
    """The checkpoint's own, of every size class."""

    @property
    def shape(self) -> VideoShape:
        """Frames, height and width in pixels."""
        return VideoShape(self.settings.num_frames, *self.settings.default_size)

    def describe(self) -> str:
        """Return one line a value, with its source."""
        settings = self.settings
        height, width = settings.default_size
        rope = ", ".join(f"{scale:g}" for scale in settings.rope_scale)
        values: list[tuple[str, object, str]] = [
            ("steps", settings.num_steps, "num_steps"),
            ("cfg", f"{settings.guidance_scale:g}", "guidance_scale"),
            ("shift", f"{settings.shift:g}", "shift"),
            ("width x height", f"{width} x {height}", "sizes"),
            ("length", settings.num_frames, "num_frames"),
            ("fps", settings.fps, "fps"),
            ("RoPE scale", rope, "rope_scale"),
            ("attention", settings.attention, "attention"),
        ]
        if settings.attention == "nabla":
            values.append(("P", f"{settings.nabla_p:g}", "nabla_p"))
        negative = settings.negative_prompt or "(empty)"
        values.append(("negative prompt", negative, "negative_prompt"))
        sizes = ", ".join(f"{width} x {height}" for height, width in self.trained.all_sizes)
        lengths = ", ".join(map(str, self.trained.frame_choices))
        values += [("trained sizes", sizes, ""), ("trained lengths", lengths, "")]
        return "\n".join(
            f"{name}: {value} ({self.sources.get(field, TABLE)})" for name, value, field in values
        )


def settle(
    settings: SamplingSettings,
    typed: Typed,
    geometry: Geometry,
    *,
    tasks: Sequence[Task] = get_args(Task),
    image_size: Size | None = None,
    before: Mapping[str, Any] | None = None,
) -> Settled:
    """Fill what a person left open, and refuse what the model cannot make.

    Args:
        settings: Of the checkpoint, from its smallest size class.
        typed: What the person typed.
        geometry: Of the model, with dense attention.
        tasks: What the model was trained for.
        image_size: Height and width in pixels of an image to start from, if there is one.
        before: Fields of `SamplingSettings` that were replaced earlier; what is typed wins.

    Returns:
        The settings of this run. An orientation that the class was not trained at leaves its
        first size, and the source says so.

    Raises:
        ValueError: The model does not do the task or has no such size class, a number is out of
            its range, or size, length and attention do not go together; the sentence says what
            would do.
    """
    task = typed.task or default_task(tasks, with_image=image_size is not None)
    check_task(task, tasks)
    row = row_of_class(settings, typed.size_class, typed.height, typed.width)
    values = {name: getattr(typed, name) for name in _VALUES if getattr(typed, name) is not None}
    sources = dict.fromkeys(before or {}, BEFORE) | dict.fromkeys(values, TYPED)
    values = {**(before or {}), **values}
    if task in STILL_TASKS and values.get("num_frames", row.num_frames) != 1:
        values["num_frames"], sources["num_frames"] = 1, ONE_FRAME
    chosen = replace(row, larger=None, **values)
    if typed.nabla_p is not None and chosen.attention == "dense":
        raise ValueError(
            f"NABLA's P is {typed.nabla_p:g} and attention is dense here: choose attention nabla, "
            "or leave P out"
        )
    default, size_source = _trained_size(row, typed.orientation)
    fine = chosen.geometry(geometry)
    size = resolve_size(
        typed.height,
        typed.width,
        default=default,
        geometry=fine,
        image_size=image_size,
        area=row.area,
        # a checkpoint made for one size alone is not asked for the image's own aspect
        choices=row.sizes if task == "i2i" or len(row.sizes) == 1 else None,
    )
    check_frames(chosen.num_frames, fine)
    if typed.height is not None:
        size_source = TYPED if size in row.sizes else f"{TYPED}, not a size it was trained at"
    elif image_size is not None:
        size_source = "by the image"
    if chosen.num_frames not in row.frame_choices:
        source = sources.get("num_frames", TABLE)
        sources["num_frames"] = f"{source}, not a length it was trained at"
    sources["sizes"] = size_source
    return Settled(task, replace(chosen, sizes=(size,)), sources, settings)


def row_of_class(
    settings: SamplingSettings,
    size_class: SizeClass,
    height: int | None = None,
    width: int | None = None,
) -> SamplingSettings:
    """Return the settings of a size class.

    Args:
        settings: Of the checkpoint, from its smallest size class.
        size_class: Which; auto takes the one that the size belongs to, and the smallest without.
        height: Pixels; None if it is still to be chosen.
        width: Pixels; None if it is still to be chosen.

    Raises:
        ValueError: The checkpoint has no such size class.
    """
    if size_class == "auto":
        both = height is not None and width is not None
        return settings.for_size(height, width) if both else settings
    if size_class == "small":
        return settings
    if settings.larger is None:
        trained_height, trained_width = settings.default_size
        raise ValueError(
            "size_class: this checkpoint was made for one class of sizes, around "
            f"{trained_width}x{trained_height}, found large; choose auto."
        )
    while settings.larger is not None:
        settings = settings.larger
    return settings


def _trained_size(row: SamplingSettings, orientation: Orientation) -> tuple[Size, str]:
    if orientation == "auto":
        return row.default_size, TABLE
    for height, width in row.sizes:
        found = "square" if height == width else "landscape" if width > height else "portrait"
        if found == orientation:
            return (height, width), f"{TABLE}, {orientation}"
    return row.default_size, f"{TABLE}, which has no {orientation} size"
