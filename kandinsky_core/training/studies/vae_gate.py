"""Whether the autoencoder keeps what the oracle looks for; run with `python -m`.

The transformer can be no better than the autoencoder it speaks through, so this is measured first:
scenes are rendered, encoded and decoded, and the oracle reads the reconstructions.
"""

from __future__ import annotations

import argparse
import sys
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from ...checkpoint import load_vae
from ...models import VideoVAE
from ...nano import nano_path
from ...video import to_pixels, to_uint8, write_contact_sheet
from ..data.latents import Bucket
from ..world import Scene, correct, measure, render, sample_scene
from .evaluate import psnr

GATE_SIZES = {Bucket(128, 17): 160, Bucket(128, 1): 160, Bucket(256, 25): 24}
"""Sizes and how many scenes of each."""
SHARE_NEEDED = 0.97


@torch.no_grad()
def reconstruct(vae: VideoVAE, frames: np.ndarray) -> np.ndarray:
    """Encode and decode uint8 frames (F, H, W, 3)."""
    return to_uint8(vae.decode(vae.encode(to_pixels(frames))))


def gate(
    vae: VideoVAE, bucket: Bucket, count: int, *, seed: int = 5
) -> tuple[dict[str, list[bool]], list[float], list[tuple[Scene, np.ndarray]]]:
    """Read reconstructions of `count` one-object scenes.

    Returns:
        Row -> which were right ("shape: star", ...), PSNR of every clip in dB, and the failures.
    """
    rng = np.random.default_rng([seed, bucket.size, bucket.num_frames])
    rows: dict[str, list[bool]] = defaultdict(list)
    decibels, failures = [], []
    for _ in range(count):
        scene = sample_scene(rng, allow_camera=False)
        frames = render(scene, bucket.size, bucket.num_frames)
        seen = reconstruct(vae, frames)
        decibels.append(psnr(seen, frames))
        right = correct(measure(seen), scene)
        for what in ("shape", "color", "motion"):
            if what in right:
                rows[f"{what}: {getattr(scene.objects[0], what)}"].append(right[what])
        if not right["all"]:
            failures.append((scene, seen))
    return rows, decibels, failures


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line; end with status 1 if a row is below what is needed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--vae", type=Path, help="weights; default: the bundled ones")
    parser.add_argument("--sheet", type=Path, help="PNG of failures to write")
    args = parser.parse_args(arguments)
    vae = load_vae(args.vae or nano_path("vae"), dtype=torch.float32)
    weak, failed = [], []
    for bucket, count in GATE_SIZES.items():
        rows, decibels, failures = gate(vae, bucket, count)
        failed += [seen for _, seen in failures if bucket.size == 128]
        mean, lowest = np.mean(decibels), min(decibels)
        sys.stdout.write(f"{bucket.name}: {mean:.1f} dB, lowest {lowest:.1f} dB\n")
        for name, hits in sorted(rows.items()):
            sys.stdout.write(f"  {name:18} {sum(hits):3d}/{len(hits)}\n")
            if np.mean(hits) < SHARE_NEEDED:
                weak.append(f"{bucket.name} {name}")
    if args.sheet is not None and failed:
        write_contact_sheet(args.sheet, np.concatenate([seen[[0, -1]] for seen in failed[:12]]))
    if weak:
        raise SystemExit("below the gate: " + ", ".join(weak))


if __name__ == "__main__":
    main()
