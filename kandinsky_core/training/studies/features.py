"""A small classifier of clips and the Frechet distance between what it sees in two sets of them.

The usual Frechet video distance takes features of a network trained on real videos, which knows
nothing of this world. This one is trained here, in minutes, to tell shapes, colours, motions and
numbers of objects in rendered clips; its features stand for what a viewer of this world notices.

Letters: B batch, F frames, N clips, D features, R sets.
"""

from __future__ import annotations

import numpy as np
import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional

from ..data.latents import sample_training_scene
from ..layout import LABELS, scene_labels
from ..optim import Schedule, make_optimizers
from ..world import render

SIZE, NUM_FRAMES = 64, 9
"""What clips are brought to before they are looked at."""
NUM_FEATURES = 12
"""Few, so that some fifty clips are enough for their covariance."""


class ClipFeatures(nn.Module):
    """Clips to features, and features to labels."""

    def __init__(self, width: int = 24) -> None:
        super().__init__()
        self.stem = nn.Conv3d(3, width, (1, 4, 4), stride=(1, 4, 4))
        self.blocks = nn.Sequential(
            *(
                nn.Sequential(
                    nn.Conv3d(width, width, 3, stride=stride, padding=1),
                    nn.GroupNorm(8, width),
                    nn.SiLU(),
                )
                for stride in (1, (1, 2, 2), 1, (2, 2, 2), 1)
            )
        )
        # every place keeps its own features: motion is about where things are
        self.squeeze = nn.Linear(width * 5 * 4 * 4, NUM_FEATURES)
        self.classify = nn.Linear(NUM_FEATURES, len(LABELS))

    def forward(self, clips: Tensor) -> Tensor:
        """Return features (B, D) of clips (B, 3, F, SIZE, SIZE) in [-1, 1]."""
        hidden = self.blocks(self.stem(clips))  # (B, C, 5, 4, 4)
        return self.squeeze(hidden.flatten(1))


def prepare(frames: np.ndarray) -> Tensor:
    """Return uint8 frames (F, H, W, 3) of any clip -> (1, 3, NUM_FRAMES, SIZE, SIZE) in [-1, 1]."""
    chosen = frames[np.linspace(0, len(frames) - 1, NUM_FRAMES).round().astype(int)]
    pixels = rearrange(torch.from_numpy(chosen), "f h w c -> f c h w").float() / 127.5 - 1
    pixels = functional.interpolate(pixels, (SIZE, SIZE), mode="area")
    return rearrange(pixels, "f c h w -> 1 c f h w")


def train_features(num_steps: int = 1200, *, batch: int = 16, seed: int = 0) -> ClipFeatures:
    """Train the classifier on rendered scenes, the same weights on every run of one machine."""
    torch.manual_seed(seed)
    rng = np.random.default_rng([seed, 77])
    network = ClipFeatures()
    optimizers = make_optimizers(network, 2e-3)
    schedule = Schedule(num_steps, warmup=30, decay=num_steps // 2)
    rates = [[group["lr"] for group in optimizer.param_groups] for optimizer in optimizers]
    for step in range(num_steps):
        scenes = [sample_training_scene(rng) for _ in range(batch)]
        clips = torch.cat([prepare(render(scene, SIZE, NUM_FRAMES)) for scene in scenes])
        labels = torch.stack([scene_labels(scene, image=False) for scene in scenes])
        logits = network.classify(network(clips))
        functional.binary_cross_entropy_with_logits(logits, labels).backward()
        for optimizer, base in zip(optimizers, rates, strict=True):
            for group, rate in zip(optimizer.param_groups, base, strict=True):
                group["lr"] = rate * schedule.factor(step)
            optimizer.step()
            optimizer.zero_grad()
    return network.eval().requires_grad_(False)


def frechet_distance(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Return Frechet distance between Gaussians fitted to two sets of features, or many pairs of
    sets.

    |mean difference|^2 + trace(A + B - 2 (A B)^1/2), the last by way of the symmetric
    A^1/2 B A^1/2, whose eigenvalues are real.

    Args:
        first: Features (N, D), or (R, N, D) for R sets.
        second: Likewise.

    Returns:
        The distance, a scalar or (R,).
    """
    a, b = (_covariance(each) for each in (first, second))
    values, vectors = np.linalg.eigh(a)
    root = (vectors * np.sqrt(values.clip(0))[..., None, :]) @ np.swapaxes(vectors, -1, -2)
    mixed = np.sqrt(np.linalg.eigvalsh(root @ b @ root).clip(0)).sum(-1)
    apart = np.square(first.mean(-2) - second.mean(-2)).sum(-1)
    return apart + np.trace(a + b, axis1=-2, axis2=-1) - 2 * mixed


def _covariance(features: np.ndarray) -> np.ndarray:
    """Return (..., N, D) -> (..., D, D)."""
    centred = features - features.mean(-2, keepdims=True)
    return np.swapaxes(centred, -1, -2) @ centred / (features.shape[-2] - 1)
