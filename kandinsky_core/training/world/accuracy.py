"""How often the oracle is right: tallies with 95 % intervals, and its score on ground truth."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping

import cv2
import numpy as np

from .oracle import correct, measure
from .render import render
from .sample import sample_scene
from .scene import Scene


def wilson_interval(num_right: int, num: int) -> tuple[float, float]:
    """Return the 95 % Wilson score interval of a proportion, in [0, 1]; all of it for no trials."""
    if num == 0:
        return 0.0, 1.0
    z = 1.959964
    share, spread = num_right / num, z * z / num
    middle = (share + spread / 2) / (1 + spread)
    half = z * math.sqrt(share * (1 - share) / num + spread / num / 4) / (1 + spread)
    return max(0.0, middle - half), min(1.0, middle + half)


class Tally:
    """Counts right answers by row, such as "shape" and "shape=star"."""

    def __init__(self) -> None:
        self._counts: dict[str, list[int]] = defaultdict(lambda: [0, 0])

    def add(self, scene: Scene, verdict: Mapping[str, bool]) -> None:
        """Count one clip of ``scene`` as judged by ``correct``.

        A scene of one object also counts in the rows of its own shape, colour, motion and size.
        """
        for row, right in verdict.items():
            self._count(row, right)
        values = {"count": str(len(scene.objects)), "background": scene.background}
        values["camera"] = scene.camera
        if len(scene.objects) == 1:
            spec = scene.objects[0]
            values |= {name: getattr(spec, name) for name in ("shape", "color", "motion", "size")}
        for name, value in values.items():
            if name in verdict:
                self._count(f"{name}={value}", verdict[name])

    def _count(self, row: str, right: bool) -> None:
        self._counts[row][0] += right
        self._counts[row][1] += 1

    def share(self, row: str) -> float:
        """Return the proportion right in ``row``."""
        num_right, num = self._counts[row]
        return num_right / num

    def rows(self) -> list[tuple[str, int, int]]:
        """Return (row, right, counted): the totals first, then the single values by name."""
        order = sorted(self._counts, key=lambda row: ("=" in row, row))
        return [(row, self._counts[row][0], self._counts[row][1]) for row in order]

    def table(self) -> str:
        """Write a Markdown table with percentages and 95 % Wilson intervals."""
        lines = ["| row | right | of | % | 95 % interval |", "|---|---|---|---|---|"]
        for row, num_right, num in self.rows():
            low, high = wilson_interval(num_right, num)
            lines.append(
                f"| {row} | {num_right} | {num} | {100 * num_right / num:.1f} "
                f"| {100 * low:.1f} to {100 * high:.1f} |"
            )
        return "\n".join(lines)


def score_ground_truth(
    num_clips: int,
    *,
    num_objects: int = 1,
    size: int = 128,
    num_frames: int = 17,
    blur: float = 0.0,
    noise: float = 0.0,
    seed: int = 0,
) -> Tally:
    """Measure the oracle on rendered scenes, a fifth of them with a moving camera.

    Args:
        num_clips: How many scenes.
        num_objects: Objects in each.
        size: Width and height, pixels.
        num_frames: Frames a clip.
        blur: Standard deviation of a Gaussian blur, pixels at a size of 128.
        noise: Standard deviation of white noise, of 255.
        seed: Seed of scenes and noise.
    """
    rng = np.random.default_rng([seed, num_objects, num_frames])
    tally = Tally()
    for _ in range(num_clips):
        scene = sample_scene(rng, num_objects=num_objects, camera_share=0.2)
        frames = render(scene, size, num_frames)
        if blur:
            frames = np.stack([cv2.GaussianBlur(f, (0, 0), blur * size / 128) for f in frames])
        if noise:
            noisy = frames + rng.normal(0, noise, frames.shape)
            frames = np.clip(np.round(noisy), 0, 255).astype(np.uint8)
        tally.add(scene, correct(measure(frames), scene))
    return tally
