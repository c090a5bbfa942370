"""Linear guess at the picture behind nano's latents, for previews while sampling.

Fitted by least squares on 80 scenes of the synthetic world, model-space latents against their
8 x 8 pixel means: R^2 0.97. It belongs to the bundled VAE's encoder; tests/nodes/test_vae.py says
when it no longer fits.
"""

from __future__ import annotations

NANO_RGB_FACTORS: list[list[float]] = [
    [0.1873, 0.1909, 0.1772],
    [-0.1306, -0.018, 0.1023],
    [-0.1025, -0.0983, -0.0764],
    [0.0641, -0.0131, 0.0512],
    [0.0699, -0.0712, 0.0034],
    [0.113, 0.0261, -0.0546],
    [-0.0264, 0.1009, -0.0331],
    [0.0272, -0.052, 0.0569],
    [0.0126, 0.0011, -0.0178],
    [0.0928, 0.0521, -0.0065],
    [-0.0573, -0.0462, -0.0222],
    [0.016, -0.0232, -0.0018],
    [0.0857, 0.0554, 0.0657],
    [-0.0096, -0.0184, 0.0027],
    [-0.0394, 0.0439, 0.0289],
    [-0.1559, -0.3345, -0.1352],
]
"""(16, 3): red, green, blue in [-1, 1] of each latent channel (model space)."""
NANO_RGB_BIAS: list[float] = [0.1164, 0.0359, -0.0185]
