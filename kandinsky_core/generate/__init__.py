"""The whole pipeline: a prompt and pictures in, latents and frames out.

`generate` is three steps: `settle` fills what the request leaves open, `prepare` encodes texts and
pictures and draws the noise, `run` samples. Whoever wants another condition, sparse attention or
noise than a request asks for gives it to `prepare`. Sources of each part are named where it lives.
"""

from __future__ import annotations

from .generated import Generated, generate, run
from .prepared import Prepared, fit_image, prepare
from .request import GenerateRequest, check_given, settle

__all__ = [
    "GenerateRequest",
    "Generated",
    "Prepared",
    "check_given",
    "fit_image",
    "generate",
    "prepare",
    "run",
    "settle",
]
