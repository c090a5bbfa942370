"""What each checkpoint was made for: steps, guidance, shift, RoPE scale, attention, sizes.

Nothing in the weights says these; `checkpoint/identification.py` finds which row applies. They are
defaults: a caller may replace any of them (`dataclasses.replace`).

Source: kandinskylab/kandinsky-5, commit 6e2a805, its ComfyUI README first, then its yaml files.
The official sources disagree on the shift (README 5 or 10, pipelines 10, test script 5), so
it stays visible and replaceable.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple, get_args

from .shapes import Geometry, Size, frames_for_seconds

Task = Literal["t2v", "i2v", "t2i", "i2i"]
"""What is made from what: text or image (first letter) to video or image (last)."""
TASKS: tuple[Task, ...] = get_args(Task)
Stage = Literal["pretrain", "sft", "nocfg", "distilled"]
Attention = Literal["dense", "nabla"]

VIDEO_NEGATIVE_PROMPT = (
    "Static, 2D cartoon, cartoon, 2d animation, paintings, images, "
    "worst quality, low quality, ugly, deformed, walking backwards"
)
"""What the reference guides videos away from; images have an empty negative prompt."""

FPS = 24


@dataclass(frozen=True)
class SamplingSettings:
    """How to sample one checkpoint at one size class."""

    num_steps: int
    """Network evaluations, guidance not counted."""
    guidance_scale: float
    """Classifier-free guidance; 1 turns it off."""
    shift: float
    """Warp of the times towards noise."""
    rope_scale: tuple[float, float, float]
    """Divisor of the rotary angles per axis (t, h, w)."""
    sizes: tuple[Size, ...]
    """Sizes (height, width) it was trained at, in pixels; the first is the default."""
    num_frames: int = 1
    """Default clip length, pixel frames."""
    frame_choices: tuple[int, ...] = (1,)
    """Clip lengths it was trained at."""
    attention: Attention = "dense"
    """Attention it was trained with."""
    nabla_p: float = 0.9
    """Share of attention that NABLA's kept blocks must cover, in (0, 1]."""
    sta_window_thw: tuple[int, int, int] = (11, 3, 3)
    """NABLA's sliding window, in tiles."""
    tile_thw: tuple[int, int, int] = (1, 8, 8)
    """Tokens per NABLA tile."""
    negative_prompt: str = ""
    """What to guide away from when the user says nothing."""
    fps: int = FPS
    """Frames per second of the clip."""
    larger: SamplingSettings | None = None
    """The same checkpoint at its next larger size class, if it has one."""

    def __post_init__(self) -> None:
        if self.num_steps < 1:
            raise ValueError(f"steps: expected at least 1, found {self.num_steps}.")
        if not 0 < self.shift < math.inf:
            raise ValueError(
                f"shift is {self.shift}: it must be a number above 0; 1 leaves the times alone."
            )
        if not math.isfinite(self.guidance_scale):
            raise ValueError(
                f"guidance_scale is {self.guidance_scale}: it must be a number; 1 turns it off."
            )
        if not all(0 < scale < math.inf for scale in self.rope_scale):
            raise ValueError(
                f"rope_scale is {self.rope_scale}: each of its three numbers must be above 0; "
                "1 keeps an axis as it is."
            )

    @property
    def default_size(self) -> Size:
        return self.sizes[0]

    @property
    def area(self) -> int:
        """Pixels of a frame made from a given image: the largest this class was trained at."""
        return max(height * width for height, width in self.sizes)

    @property
    def all_sizes(self) -> tuple[Size, ...]:
        """Sizes of this class and of the larger ones."""
        return self.sizes + (self.larger.all_sizes if self.larger else ())

    def for_size(self, height: int, width: int) -> SamplingSettings:
        """Return the row of the size class that a size belongs to.

        Call it before replacing fields: rows of a larger class know nothing of a replacement.

        Args:
            height: Pixels.
            width: Pixels.

        Returns:
            These settings or those of a larger class, whichever is nearer in area.
        """
        if self.larger is None:
            return self
        # halfway on a log scale, as areas are compared by their ratio
        border = math.sqrt(self.area * self.larger.area)
        return self.larger.for_size(height, width) if height * width > border else self

    def rope_scale_for(self, height: int, width: int) -> tuple[float, float, float]:
        """Return RoPE scale (t, h, w) of the size class that a size in pixels belongs to."""
        return self.for_size(height, width).rope_scale

    def geometry(self, base: Geometry) -> Geometry:
        """Return `base` with the tile that these settings' attention asks for."""
        return replace(base, tile_thw=self.tile_thw if self.attention == "nabla" else None)


class Release(NamedTuple):
    """What tells checkpoints of one size apart; none of it is visible in the weights."""

    variant: str
    """Name of the network's size, a row of `variants.py`."""
    task: Task
    """What it is for."""
    seconds: int | None = None
    """Clip length of a released video checkpoint."""
    stage: Stage = "sft"
    """Training stage it comes from."""


SIZES_512: tuple[Size, ...] = ((512, 768), (768, 512), (512, 512))
SIZES_1024: tuple[Size, ...] = (
    (768, 1280),
    (1280, 768),
    (1024, 1024),
    (640, 1408),
    (1408, 640),
    (896, 1152),
    (1152, 896),
)
_IMAGE_SIZES = ((1024, 1024), *(size for size in SIZES_1024 if size != (1024, 1024)))

_ROPE_512 = (1.0, 2.0, 2.0)
_ROPE_1024 = (1.0, 3.16, 3.16)


def _video(
    seconds: int,
    *,
    shift: float,
    stage: Stage = "sft",
    nabla_p: float | None = None,
    larger: SamplingSettings | None = None,
) -> SamplingSettings:
    """Return a released video checkpoint at 512; `nabla_p` None means dense."""
    num_frames = frames_for_seconds(seconds, FPS)
    return SamplingSettings(
        num_steps=16 if stage == "distilled" else 50,
        guidance_scale=1.0 if stage in ("nocfg", "distilled") else 5.0,
        shift=shift,
        rope_scale=_ROPE_512,
        sizes=SIZES_512,
        num_frames=num_frames,
        frame_choices=(num_frames,),
        attention="dense" if nabla_p is None else "nabla",
        nabla_p=0.9 if nabla_p is None else nabla_p,
        negative_prompt=VIDEO_NEGATIVE_PROMPT,
        larger=larger,
    )


def _pro(
    seconds: int,
    *,
    shift: float,
    shift_1024: float,
    nabla_p: float | None,
    nabla_p_1024: float,
    stage: Stage = "sft",
) -> SamplingSettings:
    """Return a released Pro checkpoint, which has both size classes."""
    small = _video(seconds, shift=shift, stage=stage, nabla_p=nabla_p)
    large = replace(
        small,
        shift=shift_1024,
        rope_scale=_ROPE_1024,
        sizes=SIZES_1024,
        attention="nabla",
        nabla_p=nabla_p_1024,
    )
    return replace(small, larger=large)


_IMAGE = SamplingSettings(
    num_steps=50, guidance_scale=3.5, shift=3.0, rope_scale=(1.0, 1.0, 1.0), sizes=_IMAGE_SIZES
)

_PRO_5S = _pro(5, shift=5.0, shift_1024=5.0, nabla_p=None, nabla_p_1024=0.8)
_PRO_10S = _pro(10, shift=10.0, shift_1024=10.0, nabla_p=0.9, nabla_p_1024=0.7)
_PRO_I2V = _pro(5, shift=10.0, shift_1024=5.0, nabla_p=None, nabla_p_1024=0.8)
_PRO_FAST = _pro(5, shift=5.0, shift_1024=5.0, nabla_p=None, nabla_p_1024=0.8, stage="distilled")

_NANO_256 = SamplingSettings(
    num_steps=16,
    guidance_scale=4.0,
    shift=3.0,
    rope_scale=(1.0, 2.0, 2.0),
    sizes=((256, 256),),
    num_frames=17,
    frame_choices=(1, 17, 25),
    tile_thw=(1, 2, 2),
)
_NANO = replace(_NANO_256, rope_scale=(1.0, 1.0, 1.0), sizes=((128, 128),), larger=_NANO_256)
_NANO_IMAGE = replace(_NANO, num_frames=1, larger=replace(_NANO_256, num_frames=1))

_DEBUG = replace(_NANO, num_steps=4, sizes=((64, 64),), num_frames=5, larger=None)

RELEASES: dict[Release, SamplingSettings] = {
    Release("video_lite", "t2v", 5, "sft"): _video(5, shift=5.0),
    Release("video_lite", "t2v", 5, "pretrain"): _video(5, shift=5.0),
    Release("video_lite", "t2v", 5, "nocfg"): _video(5, shift=5.0, stage="nocfg"),
    Release("video_lite", "t2v", 5, "distilled"): _video(5, shift=5.0, stage="distilled"),
    Release("video_lite", "t2v", 10, "sft"): _video(10, shift=10.0, nabla_p=0.9),
    Release("video_lite", "t2v", 10, "pretrain"): _video(10, shift=10.0, nabla_p=0.9),
    Release("video_lite", "t2v", 10, "nocfg"): _video(10, shift=10.0, nabla_p=0.9, stage="nocfg"),
    Release("video_lite", "t2v", 10, "distilled"): _video(
        10, shift=10.0, nabla_p=0.9, stage="distilled"
    ),
    Release("video_lite", "i2v", 5, "sft"): _video(5, shift=10.0),
    Release("video_pro", "t2v", 5, "sft"): _PRO_5S,
    Release("video_pro", "t2v", 5, "pretrain"): _PRO_5S,
    Release("video_pro", "t2v", 5, "distilled"): _PRO_FAST,
    Release("video_pro", "t2v", 10, "sft"): _PRO_10S,
    Release("video_pro", "t2v", 10, "pretrain"): _PRO_10S,
    Release("video_pro", "i2v", 5, "sft"): _PRO_I2V,
    Release("video_pro", "i2v", 5, "distilled"): _PRO_FAST,
    Release("image_lite", "t2i", None, "sft"): _IMAGE,
    Release("image_lite", "t2i", None, "pretrain"): _IMAGE,
    Release("image_edit", "i2i", None, "sft"): _IMAGE,
    Release("image_edit", "i2i", None, "pretrain"): _IMAGE,
    Release("nano", "t2v", None, "pretrain"): _NANO,
    Release("nano", "i2v", None, "pretrain"): _NANO,
    Release("nano", "t2i", None, "pretrain"): _NANO_IMAGE,
    Release("nano", "i2i", None, "pretrain"): _NANO_IMAGE,
    Release("debug", "t2v", None, "pretrain"): _DEBUG,
}
"""Checkpoint -> the settings it was made for."""

DEFAULT_RELEASES: dict[str, Release] = {
    "video_lite": Release("video_lite", "t2v", 5, "sft"),
    "video_pro": Release("video_pro", "t2v", 5, "sft"),
    "image_lite": Release("image_lite", "t2i", None, "sft"),
    "image_edit": Release("image_edit", "i2i", None, "sft"),
    "nano": Release("nano", "t2v", None, "pretrain"),
    "debug": Release("debug", "t2v", None, "pretrain"),
}
"""Variant -> what to assume when neither the file's name nor its metadata says more."""

EXAMPLE_FILES: dict[Task, str] = {
    "t2v": "kandinsky5lite_t2v_sft_5s",
    "i2v": "kandinsky5lite_i2v_5s or kandinsky5pro_i2v_sft_5s",
    "t2i": "kandinsky5lite_t2i",
    "i2i": "kandinsky5lite_i2i, or the bundled nano edit",
}
"""Task -> files to name where a model does not do it."""

_ONE_FILE_FOR_ALL = ("nano",)
"""Variants whose rows are one file, which edits apart: it is named for its first task."""


def tasks_of(release: Release, *, is_known: bool) -> tuple[Task, ...]:
    """Return what a checkpoint makes.

    Args:
        release: What is known of the checkpoint.
        is_known: Whether its task was found and not assumed.

    Returns:
        Its tasks. Weights of image to video also make video from text; if the task is assumed,
        it may be any of its variant's. Only edit checkpoints edit.
    """
    if release.task == "i2i":
        return ("i2i",)
    if release.variant in _ONE_FILE_FOR_ALL or not is_known:
        tasks: list[Task] = [row.task for row in RELEASES if row.variant == release.variant]
        return tuple(dict.fromkeys(task for task in tasks if task != "i2i"))
    if release.task == "i2v":
        return ("t2v", "i2v")
    return (release.task,)


def find_settings(release: Release) -> tuple[SamplingSettings, Release]:
    """Return the settings of a checkpoint, or of the released one most like it.

    Args:
        release: What is known of the checkpoint.

    Returns:
        The settings, and the row they come from: `release` itself where there is one, else
        the row of the same variant that shares most, task before stage before seconds.

    Raises:
        ValueError: The variant has no row at all.
    """
    rows = [row for row in RELEASES if row.variant == release.variant]
    if not rows:
        known = ", ".join(DEFAULT_RELEASES)
        raise ValueError(f"variant {release.variant!r} has no settings: expected one of {known}.")

    def likeness(row: Release) -> tuple[bool, bool, bool]:
        return row.task == release.task, row.stage == release.stage, row.seconds == release.seconds

    # max keeps the first of equals, so the order of the table decides
    row = max(rows, key=likeness)
    return RELEASES[row], row
