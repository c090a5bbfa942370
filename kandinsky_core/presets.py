"""Presets: a name for each kind of work, and the checkpoint it is for.

The values are those of the checkpoint in `settings.py`; this table holds none.
"""

from __future__ import annotations

from typing import NamedTuple

from .overrides import ChosenSettings, Orientation, SizeClass, choose_settings
from .settings import RELEASES, Release


class Preset(NamedTuple):
    """A kind of work."""

    release: Release
    """Row of `RELEASES`."""
    file_name: str | None
    """Of the released checkpoint, without its suffix; None for the bundled one."""
    size_class: SizeClass = "auto"
    """Which sizes of the row."""

    def choose(self, orientation: Orientation = "auto") -> ChosenSettings:
        """Settle size and values; see `choose_settings`."""
        return choose_settings(
            RELEASES[self.release], size_class=self.size_class, orientation=orientation
        )


def _lite(seconds: int, stage: str = "sft", mark: str = "sft") -> Preset:
    name = f"kandinsky5lite_t2v_{mark}_{seconds}s"
    return Preset(Release("video_lite", "t2v", seconds, stage), name)


def _pro(seconds: int, size_class: SizeClass, task: str = "t2v") -> Preset:
    name = f"kandinsky5pro_{task}_sft_{seconds}s"
    return Preset(Release("video_pro", task, seconds, "sft"), name, size_class)


def _nano(task: str) -> Preset:
    return Preset(Release("nano", task, None, "pretrain"), None)


PRESETS: dict[str, Preset] = {
    "nano video": _nano("t2v"),
    "nano image to video": _nano("i2v"),
    "nano image": _nano("t2i"),
    "nano edit": _nano("i2i"),
    "Lite 5 s": _lite(5),
    "Lite 10 s": _lite(10),
    "Lite distilled 5 s": _lite(5, "distilled", "distilled16steps"),
    "Lite distilled 10 s": _lite(10, "distilled", "distilled16steps"),
    "Lite image to video 5 s": Preset(
        Release("video_lite", "i2v", 5, "sft"), "kandinsky5lite_i2v_5s"
    ),
    "Pro SD 5 s": _pro(5, "small"),
    "Pro SD 10 s": _pro(10, "small"),
    "Pro HD 5 s": _pro(5, "large"),
    "Pro HD 10 s": _pro(10, "large"),
    "Pro SD image to video 5 s": _pro(5, "small", "i2v"),
    "Pro HD image to video 5 s": _pro(5, "large", "i2v"),
    "Image": Preset(Release("image_lite", "t2i", None, "sft"), "kandinsky5lite_t2i"),
    "Edit": Preset(Release("image_edit", "i2i", None, "sft"), "kandinsky5lite_i2i"),
}
"""Name -> preset."""
