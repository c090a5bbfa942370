"""The straight path between latents (t = 0) and noise (t = 1).

    x_t = (1 - t) latents + t noise,        velocity = dx_t/dt = noise - latents

Times broadcast over everything but the batch. Source: arXiv 2511.14993, section 3.
"""

from __future__ import annotations

from torch import Tensor


def _like(t: Tensor, x: Tensor) -> Tensor:
    """Shape times (B,) or () so that they broadcast over x (B, ...)."""
    return t.reshape(-1, *[1] * (x.ndim - 1)) if t.ndim else t


def interpolate(latents: Tensor, noise: Tensor, t: Tensor) -> Tensor:
    """Return x_t on the path; latents and noise (B, ...), t (B,) in [0, 1]."""
    return latents.lerp(noise, _like(t, latents).to(latents.dtype))


def velocity_target(latents: Tensor, noise: Tensor) -> Tensor:
    """Return the velocity of the path, noise - latents, which the network learns."""
    return noise - latents


def predict_latents(x_t: Tensor, velocity: Tensor, t: Tensor) -> Tensor:
    """Follow a velocity from x_t (B, ...) straight to t = 0; t (B,) or a scalar tensor."""
    return x_t - _like(t, x_t) * velocity
