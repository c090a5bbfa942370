"""The training loop's arithmetic, worked out by hand: averages, clipping, decay, two processes."""

from __future__ import annotations

import json
import runpy
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from kandinsky_core.text import TextConditioning
from kandinsky_core.training.data.batch import LatentBatch
from kandinsky_core.training.distributed import SINGLE
from kandinsky_core.training.layout import OBJECT_ENTRIES
from kandinsky_core.training.loop import Loop, LoopSettings, step_generator
from kandinsky_core.training.objectives import flow_loss, focus
from kandinsky_core.training.optim import Schedule, make_optimizers

CONSTANT = Schedule(100, warmup=0)


def vector_loop(run_dir, gradient, start=0.0, **settings) -> Loop:
    """Plain descent with step 1 on a loss whose gradient is the same everywhere."""
    model = nn.Linear(len(gradient), 1, bias=False)
    nn.init.constant_(model.weight, start)
    slope = torch.tensor([gradient])

    def objective(_):
        return {"loss": (model.weight * slope).sum()}

    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    return Loop(model, objective, [optimizer], LoopSettings(CONSTANT, **settings), run_dir)


def test_average_warms_up_then_decays_as_set(tmp_path):
    # the weight falls by one a step, from 10: 9, 8, 7
    loop = vector_loop(tmp_path, [1.0], start=10.0, ema_decay=0.2)
    averages = []
    for _ in range(3):
        loop.train_step()
        averages.append(loop.ema_state()["weight"].item())
    first = 0.1 * 10 + 0.9 * 9  # (1 + 0) / (10 + 0) of the old stays
    second = first * 2 / 11 + 8 * 9 / 11
    third = 0.2 * second + 0.8 * 7  # 3 / 12 would be more than 0.2
    assert averages == pytest.approx([first, second, third])


@pytest.mark.parametrize(
    ("clip_norm", "moved"), [(1.0, [0.6, 0.8]), (2.5, [1.5, 2.0]), (6.0, [3.0, 4.0])]
)
def test_gradient_is_cut_to_the_norm_that_is_set(clip_norm, moved, tmp_path):
    loop = vector_loop(tmp_path, [3.0, 4.0], clip_norm=clip_norm)
    assert loop.train_step()["grad_norm"] == pytest.approx(5.0)
    assert loop.model.weight[0].tolist() == pytest.approx([-x for x in moved], rel=1e-5)


def test_norm_is_that_of_all_parameters_together(tmp_path):
    model = nn.ModuleList([nn.Linear(1, 1, bias=False) for _ in range(2)])
    before = [part.weight.item() for part in model]

    def objective(_):
        return {"loss": 3 * model[0].weight.sum() + 4 * model[1].weight.sum()}

    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    loop = Loop(model, objective, [optimizer], LoopSettings(CONSTANT, clip_norm=1.0), tmp_path)
    loop.train_step()
    moved = [b - part.weight.item() for b, part in zip(before, model, strict=True)]
    assert moved == pytest.approx([0.6, 0.8], rel=1e-4)


def test_weight_decay_shrinks_hidden_matrices_alone():
    """Without a gradient nothing else moves them."""
    model = nn.ModuleDict({"hidden": nn.Linear(4, 4), "embeddings": nn.Linear(4, 4)})
    before = {name: param.detach().clone() for name, param in model.named_parameters()}
    for param in model.parameters():
        param.grad = torch.zeros_like(param)
    for optimizer in make_optimizers(model, 0.5, weight_decay=0.1):
        optimizer.step()
    for name, param in model.named_parameters():
        left = 0.95 if name == "hidden.weight" else 1.0  # 1 - 0.5 x 0.1
        torch.testing.assert_close(param.detach(), before[name] * left)


def test_two_processes_are_one_that_sees_both_halves(tmp_path):
    script = Path(__file__).with_name("halves.py")
    alone = runpy.run_path(str(script))["train"](SINGLE, tmp_path / "alone")
    subprocess.run([sys.executable, script, tmp_path / "two"], check=True)
    together = load_file(tmp_path / "two" / "checkpoint.safetensors")
    for name, value in load_file(tmp_path / "alone" / "checkpoint.safetensors").items():
        torch.testing.assert_close(together[name], value, rtol=1e-5, atol=1e-6)
    metrics = json.loads((tmp_path / "two" / "metrics.json").read_text())
    for row, expected in zip(metrics, alone, strict=True):
        assert row == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("seed", [0, 2**63 - 1])
def test_every_step_and_process_draws_anew_for_any_seed(seed):
    draws = [
        torch.rand(4, generator=step_generator(seed, step, rank))
        for step in (0, 1)
        for rank in (0, 1)
    ]
    assert len({tuple(draw.tolist()) for draw in draws}) == 4
    assert torch.equal(draws[1], torch.rand(4, generator=step_generator(seed, 0, 1)))


def off_by(errors):
    """Return a network whose velocity is off by `errors` (T,), the same everywhere in a latent
    frame."""

    def transformer(x, t, *_, **__):
        time = t.reshape(-1, 1, 1, 1, 1)
        x_t, clean = x[:, :1], torch.ones_like(x[:, :1])
        velocity = (x_t - clean) / time  # x_t = (1 - t) clean + t noise
        return velocity + torch.tensor(errors).reshape(1, 1, -1, 1, 1)

    return transformer


def loss_of(transformer, batch):
    none = torch.zeros(2, 1, 1)
    text = TextConditioning(none, none[..., 0] == 0, none[:, 0])
    return flow_loss(transformer, text, batch, torch.Generator().manual_seed(0)).item()


@pytest.fixture
def clean_batch():
    """Two clips of ones without objects, two latent frames each, the second given its first."""
    latents = torch.ones(2, 1, 2, 4, 4)
    layout = torch.zeros(2, 2, 3, OBJECT_ENTRIES)
    return LatentBatch(latents, latents[:, :, :1], torch.tensor([False, True]), ["", ""], layout)


def test_loss_is_the_mean_over_what_counts(clean_batch):
    # frames off by 1 and 3: one clip counts both, the other its second alone
    assert loss_of(off_by([1.0, 3.0]), clean_batch) == pytest.approx((1 + 9 + 9) / 3, rel=1e-3)
    assert loss_of(off_by([2.0, 2.0]), clean_batch) == pytest.approx(4.0, rel=1e-3)


def test_loss_is_divided_by_its_weights(clean_batch):
    layout = clean_batch.layout.clone()
    layout[0, 1, 0, 0] = 1.0  # in the middle of the first clip's second latent frame
    seen = []

    def transformer(x, t, *_, **__):
        seen.append(t)
        return off_by([1.0, 3.0])(x, t)

    got = loss_of(transformer, replace(clean_batch, layout=layout))
    weights = focus(layout, seen[0], (4, 4)).sum((1, 3, 4))  # (B, T)
    weights[1, 0] = 0  # given
    assert weights[0, 1] > 1.1 * weights[0, 0]
    expected = (weights @ torch.tensor([1.0, 9.0])).sum() / weights.sum()
    assert got == pytest.approx(expected.item(), rel=1e-3)
