"""Linear guess at the picture behind nano's latents, for previews while sampling."""

from __future__ import annotations

NANO_RGB_FACTORS: list[list[float]] | None = None
"""(16, 3): red, green, blue in [-1, 1] of each latent channel (model space)."""
NANO_RGB_BIAS: list[float] | None = None
