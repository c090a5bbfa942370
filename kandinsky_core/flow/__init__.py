"""Flow matching: path, schedule, guidance, conditioning, and the Euler sampler."""

from .condition import VisualCondition, normalize_first_frames
from .guidance import guide
from .path import interpolate, predict_latents, velocity_target
from .sampler import Step, make_noise, sample
from .schedule import shift_times, timesteps

__all__ = [
    "Step",
    "VisualCondition",
    "guide",
    "interpolate",
    "make_noise",
    "normalize_first_frames",
    "predict_latents",
    "sample",
    "shift_times",
    "timesteps",
    "velocity_target",
]
