"""Presets: a name for each kind of work, and the checkpoint it is for.

The values are those of the checkpoint in `settings.py`; this table holds none.
"""

from __future__ import annotations

from typing import NamedTuple

from .settings import RELEASES, Release
from .shapes import RELEASED
from .typed import Orientation, Settled, SizeClass, Typed, settle


class Part(NamedTuple):
    """A file beside the transformer."""

    file_name: str
    """What it is usually called."""
    pattern: str
    """Regular expression of other names that it goes by, in lower case without folders."""


QWEN = Part("qwen_2.5_vl_7b_fp8_scaled.safetensors", r"qwen[\W_]*2[\W_]*5[\W_]*vl[\W_]*7b")
CLIP = Part("clip_l.safetensors", r"clip[\W_]*l(?![a-z])|clip[\W_]*vit[\W_]*l")
VIDEO_VAE = Part("hunyuan_video_vae_bf16.safetensors", r"hunyuan[\W_]*video[\W_]*vae")
IMAGE_VAE = Part("ae.safetensors", r"ae\.|flux.*[\W_]v?ae(?![a-z])")
_PARTS = {
    "video_lite": (QWEN, CLIP, VIDEO_VAE),
    "video_pro": (QWEN, CLIP, VIDEO_VAE),
    "image_lite": (QWEN, CLIP, IMAGE_VAE),
    "image_edit": (QWEN, CLIP, IMAGE_VAE),
}


class Preset(NamedTuple):
    """A kind of work."""

    release: Release
    """The checkpoint, a row of `RELEASES`."""
    file_name: str | None
    """Of the released checkpoint, a file or a Diffusers folder; None for the bundled one."""
    size_class: SizeClass = "auto"
    """Which sizes of the row."""

    @property
    def parts(self) -> tuple[Part, Part, Part] | None:
        """Qwen, CLIP and the VAE that it works with; None where they are bundled."""
        return _PARTS.get(self.release.variant)

    def choose(self, orientation: Orientation = "auto") -> Settled:
        """Settle size and values."""
        typed = Typed(task=self.release.task, size_class=self.size_class, orientation=orientation)
        return settle(RELEASES[self.release], typed, RELEASED)


def _lite(seconds: int, stage: str = "sft", mark: str = "sft") -> Preset:
    name = f"kandinsky5lite_t2v_{mark}_{seconds}s.safetensors"
    return Preset(Release("video_lite", "t2v", seconds, stage), name)


def _pro(seconds: int, size_class: SizeClass, task: str = "t2v") -> Preset:
    name = f"kandinsky5pro_{task}_sft_{seconds}s.safetensors"
    return Preset(Release("video_pro", task, seconds, "sft"), name, size_class)


def _pro_distilled(size_class: SizeClass, task: str = "t2v") -> Preset:
    name = f"Kandinsky-5.0-{task.upper()}-Pro-distilled-5s-Diffusers"
    return Preset(Release("video_pro", task, 5, "distilled"), name, size_class)


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
        Release("video_lite", "i2v", 5, "sft"), "kandinsky5lite_i2v_5s.safetensors"
    ),
    "Pro SD 5 s": _pro(5, "small"),
    "Pro SD 10 s": _pro(10, "small"),
    "Pro HD 5 s": _pro(5, "large"),
    "Pro HD 10 s": _pro(10, "large"),
    "Pro SD image to video 5 s": _pro(5, "small", "i2v"),
    "Pro HD image to video 5 s": _pro(5, "large", "i2v"),
    "Image": Preset(Release("image_lite", "t2i", None, "sft"), "kandinsky5lite_t2i.safetensors"),
    "Edit": Preset(Release("image_edit", "i2i", None, "sft"), "kandinsky5lite_i2i.safetensors"),
    "Pro SD distilled 5 s": _pro_distilled("small"),
    "Pro HD distilled 5 s": _pro_distilled("large"),
    "Pro SD distilled image to video 5 s": _pro_distilled("small", "i2v"),
    "Pro HD distilled image to video 5 s": _pro_distilled("large", "i2v"),
}
"""Name that a user reads -> preset."""
