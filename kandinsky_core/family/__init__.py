"""The tables of the family, and how what a person types is settled with them."""

from __future__ import annotations

from .config import DiTConfig, ImageVAEConfig, VideoVAEConfig
from .given import check_overlap, check_room
from .presets import PRESETS, Part
from .settings import EXAMPLE_FILES, FPS, TASKS, Attention, Release, SamplingSettings, Task
from .shapes import (
    RELEASED,
    Geometry,
    Size,
    VideoShape,
    check_frames,
    check_size,
    frames_for_seconds,
    pixel_shape,
)
from .typed import Orientation, Settled, SizeClass, Typed, settle
from .variants import VAE_OF, VAES

__all__ = [
    "EXAMPLE_FILES",
    "FPS",
    "PRESETS",
    "RELEASED",
    "TASKS",
    "VAES",
    "VAE_OF",
    "Attention",
    "DiTConfig",
    "Geometry",
    "ImageVAEConfig",
    "Orientation",
    "Part",
    "Release",
    "SamplingSettings",
    "Settled",
    "Size",
    "SizeClass",
    "Task",
    "Typed",
    "VideoShape",
    "VideoVAEConfig",
    "check_frames",
    "check_overlap",
    "check_room",
    "check_size",
    "frames_for_seconds",
    "pixel_shape",
    "settle",
]
