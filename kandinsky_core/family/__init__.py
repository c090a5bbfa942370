"""The tables of the family: dimensions, sizes, and the settings each checkpoint was made for."""

from __future__ import annotations

from .config import DiTConfig, ImageVAEConfig, VideoVAEConfig
from .overrides import TYPED, Orientation, Override, SizeClass, choose_settings, row_of_class
from .presets import PRESETS, Part
from .settings import EXAMPLE_FILES, FPS, TASKS, Attention, Release, SamplingSettings, Task
from .shapes import (
    RELEASED,
    Size,
    VideoShape,
    check_frames,
    check_size,
    frames_for_seconds,
    pixel_shape,
    resolve_size,
)
from .variants import VAE_OF, VAES

__all__ = [
    "EXAMPLE_FILES",
    "FPS",
    "PRESETS",
    "RELEASED",
    "TASKS",
    "TYPED",
    "VAES",
    "VAE_OF",
    "Attention",
    "DiTConfig",
    "ImageVAEConfig",
    "Orientation",
    "Override",
    "Part",
    "Release",
    "SamplingSettings",
    "Size",
    "SizeClass",
    "Task",
    "VideoShape",
    "VideoVAEConfig",
    "check_frames",
    "check_size",
    "choose_settings",
    "frames_for_seconds",
    "pixel_shape",
    "resolve_size",
    "row_of_class",
]
