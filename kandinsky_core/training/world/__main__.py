"""Measures the oracle on ground truth: ``python -m kandinsky_core.training.world``."""

from __future__ import annotations

import argparse

from .accuracy import score_ground_truth
from .heldout import heldout_checksum


def main() -> None:
    """Print a table for every kind of clip; all but the first take a quarter as many."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--clips", type=int, default=2000, help="one-object clips to measure")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    num, part = arguments.clips, max(1, arguments.clips // 4)
    kinds = [
        ("one object, 17 frames, 128 pixels", num, {}),
        ("the same blurred (1 pixel) and noisy (4 of 255)", part, {"blur": 1.0, "noise": 4.0}),
        ("two objects", part, {"num_objects": 2}),
        ("three objects", part, {"num_objects": 3}),
        ("one object, 25 frames, 256 pixels", part, {"size": 256, "num_frames": 25}),
        ("one object, single images", part, {"num_frames": 1}),
    ]
    print(f"held-out checksum {heldout_checksum()}")
    for title, num_clips, options in kinds:
        tally = score_ground_truth(num_clips, seed=arguments.seed, **options)
        print(f"\n## {title}\n\n{tally.table()}", flush=True)


if __name__ == "__main__":
    main()
