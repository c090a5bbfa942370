"""Trains a small network on eight rows, in one process or in two that see one half each.

    python halves.py FOLDER

A script, because a process of a group imports what it runs by name.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch
from torch import nn

from kandinsky_core.training.distributed import Group, launch
from kandinsky_core.training.loop import Loop, LoopSettings
from kandinsky_core.training.optim import Schedule, make_optimizers


def train(group: Group, folder: Path) -> list[dict[str, float]]:
    """Take three steps; the main process leaves a checkpoint and the metrics."""
    torch.manual_seed(group.rank)  # all start from the main one's weights
    model = nn.Sequential(nn.Linear(6, 4), nn.Tanh(), nn.Linear(4, 6), nn.Linear(6, 1))
    rows = torch.randn(8, 6, generator=torch.Generator().manual_seed(0))
    mine = rows.chunk(group.size)[group.rank]

    def objective(_: int) -> dict[str, torch.Tensor]:
        return {"loss": (model(mine) - mine.sum(1, keepdim=True)).square().mean()}

    optimizers = make_optimizers(model, 0.05, group=group)
    settings = LoopSettings(Schedule(3, warmup=0), clip_norm=1.0)
    loop = Loop(model, objective, optimizers, settings, folder, group=group)
    metrics = [loop.train_step() for _ in range(3)]
    if group.is_main:
        loop.save(loop.checkpoint_path)
        (folder / "metrics.json").write_text(json.dumps(metrics))
    return metrics


if __name__ == "__main__":
    launch(train, 2, Path(sys.argv[1]), threads=1)
