"""Linear guess at the picture behind nano's latents, for previews while sampling.

Fitted by `python -m kandinsky_core.training.studies.preview` (R^2 0.97). It belongs to the
bundled VAE's encoder; tests/nodes/test_vae.py says when it no longer fits.
"""

from __future__ import annotations

NANO_RGB_FACTORS: list[list[float]] = [
    [0.1993, 0.2037, 0.1908],
    [0.0051, 0.0605, 0.1173],
    [0.0193, -0.026, -0.0765],
    [-0.2009, -0.0852, 0.021],
    [0.0107, 0.0493, -0.0428],
    [-0.097, 0.0587, 0.0248],
    [0.0869, 0.1108, -0.0366],
    [0.0451, 0.0266, -0.0363],
    [0.0297, -0.0211, -0.0465],
    [-0.1043, 0.0307, -0.0567],
    [0.0194, -0.0578, 0.0164],
    [-0.0024, 0.0056, -0.0057],
    [0.0571, 0.0359, 0.0597],
    [-0.016, -0.0747, -0.0296],
    [-0.0065, -0.0738, -0.051],
    [-0.0494, -0.0008, -0.0344],
]
"""(16, 3): red, green, blue in [-1, 1] of each latent channel (model space)."""
NANO_RGB_BIAS: list[float] = [0.1232, 0.0369, -0.0147]
