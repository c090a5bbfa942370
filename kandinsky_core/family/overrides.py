"""Settings of one run: what a checkpoint was made for, with what a creator typed in place of it.

Each value keeps its source, so that a node can show which one won.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple

from .settings import SamplingSettings
from .shapes import RELEASED, Size, VideoShape, resolve_size

SizeClass = Literal["auto", "small", "large"]
"""Sizes a checkpoint was trained at: the first class or the last; auto goes by the size."""
Orientation = Literal["auto", "landscape", "portrait", "square"]
"""Which of the trained sizes; auto takes the first."""

TABLE = "checkpoint table"
TYPED = "typed here"


class Override(NamedTuple):
    """A value in place of the table's."""

    value: Any
    source: str
    """Where it comes from, for readers."""


@dataclass(frozen=True)
class ChosenSettings:
    """Settings of one run."""

    settings: SamplingSettings
    """One size class; its only size and its `num_frames` are what will be made."""
    sources: Mapping[str, str]
    """Field of `settings` -> where its value comes from."""
    trained: SamplingSettings
    """The checkpoint's own, of every size class."""

    def describe(self) -> str:
        """One line a value, with its source."""
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


def choose_settings(
    settings: SamplingSettings,
    *,
    size_class: SizeClass = "auto",
    orientation: Orientation = "auto",
    height: int = 0,
    width: int = 0,
    overrides: Mapping[str, Override] | None = None,
) -> ChosenSettings:
    """Settle every value of a run.

    Args:
        settings: Of the checkpoint, from its smallest size class.
        size_class: Row to take; auto takes the one that the size belongs to.
        orientation: Which trained size, where none is given.
        height: Pixels; 0 takes a trained size.
        width: Pixels; 0 takes a trained size.
        overrides: Fields of `SamplingSettings` whose values are others.

    Returns:
        The settings and their sources. An orientation that the class was not trained at leaves
        its first size, and the source says so.

    Raises:
        ValueError: There is no such size class, or the size or length does not fit the model.
    """
    overrides = overrides or {}
    row = row_of_class(settings, size_class, height, width)
    values = {field: override.value for field, override in overrides.items()}
    _check_length(row, values.get("num_frames", row.num_frames))
    chosen = replace(row, larger=None, **values)
    default, size_source = _trained_size(row, orientation)
    geometry = chosen.geometry(RELEASED)
    try:
        size = resolve_size(height or None, width or None, default=default, geometry=geometry)
        VideoShape(chosen.num_frames, *size).check(geometry)
    except ValueError as error:
        raise ValueError(f"width, height, length: {error}") from error
    if height:
        size_source = TYPED if size in row.sizes else f"{TYPED}, not a size it was trained at"
    sources = {field: override.source for field, override in overrides.items()}
    if chosen.num_frames not in row.frame_choices:
        source = sources.get("num_frames", TABLE)
        sources["num_frames"] = f"{source}, not a length it was trained at"
    sources["sizes"] = size_source
    return ChosenSettings(replace(chosen, sizes=(size,)), sources, settings)


def row_of_class(
    settings: SamplingSettings, size_class: SizeClass, height: int = 0, width: int = 0
) -> SamplingSettings:
    """The settings of a size class.

    Args:
        settings: Of the checkpoint, from its smallest size class.
        size_class: Which; auto takes the one that the size belongs to, and the smallest without.
        height: Pixels; 0 if it is still to be chosen.
        width: Pixels; 0 if it is still to be chosen.

    Raises:
        ValueError: The checkpoint has no such size class.
    """
    if size_class == "auto":
        return settings.for_size(height, width) if height and width else settings
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


def _check_length(row: SamplingSettings, num_frames: int) -> None:
    if num_frames > 1 and row.frame_choices == (1,):
        raise ValueError(
            f"length: this checkpoint makes images, found {num_frames} frames; set it to 1."
        )
