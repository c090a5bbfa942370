"""Linear guess at the picture behind nano's latents, for previews while sampling.

Fitted by least squares on 40 scenes of the synthetic world, model-space latents against their
8 x 8 pixel means: R^2 0.99. It belongs to the bundled VAE's encoder; tests/nodes/test_vae.py says
when it no longer fits.
"""

from __future__ import annotations

NANO_RGB_FACTORS: list[list[float]] = [
    [-0.089, 0.045, -0.2637],
    [-0.0102, -0.1355, -0.5248],
    [0.2445, -0.0152, -0.1567],
    [0.0447, -0.207, 0.1651],
    [0.1382, 0.1152, -0.1551],
    [-0.0717, -0.1377, -0.0243],
    [-0.0762, -0.0742, -0.1698],
    [0.2117, 0.4392, 0.6506],
    [0.27, -0.1308, -0.0237],
    [0.2404, 0.5343, 0.5678],
    [-0.0535, -0.0551, 0.1854],
    [0.0522, -0.5175, -0.1571],
    [-0.0208, -0.3312, -0.6149],
    [0.0711, -0.1021, -0.263],
    [0.0891, 0.2222, 0.4863],
    [-0.0979, -0.0349, 0.0065],
]
"""(16, 3): red, green, blue in [-1, 1] of each latent channel (model space)."""
NANO_RGB_BIAS: list[float] = [0.0155, 0.0098, -0.0118]
