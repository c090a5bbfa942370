"""Fits the linear guess at the picture behind nano's latents that previews use (`python -m`).

It belongs to the autoencoder's encoder: a new one needs a new fit, printed here for
nodes/host/preview_colors.py.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from einops import rearrange, reduce
from torch import Tensor

from ...checkpoint import load_vae
from ...models import VideoVAE, to_model_space
from ...nano import nano_path
from ...video import to_pixels
from ..data.latents import sample_training_scene
from ..world import render

NUM_SCENES = 80


class PreviewFit(NamedTuple):
    """picture = latents @ factors + bias, in [-1, 1]."""

    factors: Tensor
    """Weight of each channel in red, green and blue (C, 3)."""
    bias: Tensor
    """Red, green and blue of zero latents (3,)."""
    r2: float
    """Share of the pictures' variance that it explains."""


@torch.no_grad()
def fit_preview(vae: VideoVAE, *, seed: int = 3) -> PreviewFit:
    """Fit single frames' cell means to their model-space latents by least squares."""
    rng = np.random.default_rng(seed)
    latents, pictures = [], []
    for _ in range(NUM_SCENES):
        pixels = to_pixels(render(sample_training_scene(rng), 128, 1))
        z = to_model_space(vae.encode(pixels), vae.config)
        latents.append(rearrange(z, "1 c 1 h w -> (h w) c"))
        cell = vae.config.spatial_compression
        pictures.append(reduce(pixels, "1 c 1 (h y) (w x) -> (h w) c", "mean", y=cell, x=cell))
    z, wanted = torch.cat(latents).double(), torch.cat(pictures).double()
    inputs = torch.cat([z, torch.ones_like(z[:, :1])], dim=1)
    solution = torch.linalg.lstsq(inputs, wanted).solution  # (C + 1, 3)
    left = (inputs @ solution - wanted).square().sum()
    r2 = 1 - float(left / (wanted - wanted.mean(0)).square().sum())
    return PreviewFit(solution[:-1].float(), solution[-1].float(), r2)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--vae", type=Path, help="weights; default: the bundled ones")
    args = parser.parse_args(arguments)
    vae = load_vae(args.vae or nano_path("vae"), dtype=torch.float32)
    assert isinstance(vae, VideoVAE)
    fit = fit_preview(vae)
    sys.stdout.write(f"R^2 {fit.r2:.3f}\n")
    for row in [*fit.factors, fit.bias]:
        sys.stdout.write(f"{[round(value, 4) for value in row.tolist()]},\n")


if __name__ == "__main__":
    main()
