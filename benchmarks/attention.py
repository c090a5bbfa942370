"""Sparse attention alone against torch's dense attention, over random maps of a given density."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from functools import partial

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from kandinsky_core.attention import (
    Attend,
    BlockMap,
    attend_gathered,
    load_backend,
    missing,
    top_p_blocks,
)

from .busy import busy_process
from .case import Case, Goal
from .meter import Run

BLOCK, HEADS = 64, 4
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
GOALS = {
    # head dim, dtype: compiled goal and least, pure PyTorch goal and least, at 10 % density
    (64, "fp32"): (9.0, 8.0, 6.0, 4.4),
    (64, "bf16"): (7.0, 5.5, 4.0, 3.0),
    (128, "fp32"): (9.0, 8.0, 5.0, 4.0),
    (128, "bf16"): (6.5, 5.0, 3.5, 2.4),
}
SPARSE = {"cpu": ("gathered", "compiled", "flex"), "cuda": ("gathered", "flex", "block_sparse")}
"""Backends that take a map and run on a device: plain PyTorch, and those that may be missing."""
PREDICTED_ON_CUDA = (7.0, 5.0)
"""Bounds of docs/benchmarks/reading.md for bf16 from 32,768 tokens at 10 % density."""


def random_map(
    num_blocks: int, density: float, generator: torch.Generator, device: torch.device
) -> BlockMap:
    """Return a map whose rows keep different numbers of blocks, `density` of all on average."""
    spread = density * (0.5 + torch.rand(1, HEADS, num_blocks, 1, generator=generator))
    kept = torch.rand(1, HEADS, num_blocks, num_blocks, generator=generator) < spread
    kept |= torch.eye(num_blocks, dtype=torch.bool)
    return BlockMap(kept.to(device), (1, 8, 8), (num_blocks, 1, 1))


def make_inputs(
    tokens: int, density: float, head_dim: int, dtype: torch.dtype, device: torch.device
) -> tuple[tuple[Tensor, Tensor, Tensor], BlockMap]:
    """q, k, v (1, HEADS, tokens, head_dim) and a map, the same on every device."""
    generator = torch.Generator().manual_seed(0)
    shape = (1, HEADS, tokens, head_dim)
    q, k, v = (torch.randn(shape, generator=generator).to(device, dtype) for _ in range(3))
    return (q, k, v), random_map(tokens // BLOCK, density, generator, device)


def backends(device: torch.device, dtype: torch.dtype) -> dict[str, Attend]:
    """Return what is compared: pure PyTorch, and what else is here for this device."""
    names = [name for name in SPARSE.get(device.type, ("gathered",)) if missing(name) is None]
    if dtype != torch.bfloat16 and "block_sparse" in names:
        names.remove("block_sparse")  # it would hand the work to another
    return {name: load_backend(name) for name in names}


def forward(
    tokens: int, density: float, head_dim: int, dtype: torch.dtype, device: torch.device
) -> dict[str, Run]:
    """Time forward passes."""
    qkv, block_map = make_inputs(tokens, density, head_dim, dtype, device)
    runs: dict[str, Run] = {"sdpa dense": lambda: scaled_dot_product_attention(*qkv)}
    for name, attend in backends(device, dtype).items():
        runs[name] = partial(attend, *qkv, block_map=block_map)
    return runs


def training(tokens: int, density: float, device: torch.device) -> dict[str, Run]:
    """Time forward and backward passes."""
    qkv, block_map = make_inputs(tokens, density, 64, torch.float32, device)

    def run(attend: Callable[..., Tensor]) -> None:
        leaves = [x.detach().requires_grad_() for x in qkv]
        with torch.enable_grad():
            attend(*leaves).sum().backward()

    return {
        "sdpa dense": partial(run, scaled_dot_product_attention),
        "gathered": partial(run, partial(attend_gathered, block_map=block_map)),
    }


def map_building(tokens: int, device: torch.device) -> dict[str, Run]:
    """Compare making the map with attending with it."""
    (q, k, v), block_map = make_inputs(tokens, 0.1, 64, torch.float32, device)
    return {
        "map": partial(top_p_blocks, q, k, BLOCK, 0.9),
        "gathered": partial(attend_gathered, q, k, v, block_map=block_map),
    }


def disturbed(tokens: int) -> dict[str, Run]:
    """Time the same while another process keeps one core busy."""
    runs = forward(tokens, 0.1, 64, torch.float32, torch.device("cpu"))
    return {name: busy_process(runs[name]) for name in ("sdpa dense", "gathered")}


def cases(quick: bool, device: torch.device) -> Iterator[Case]:
    """Lengths at 10 %, then densities at one length, then the rest."""
    lengths = (512,) if quick else (4096, 8192, 16384, 32768, 65536)
    middle = 512 if quick else 8192
    wide_lengths = (middle,) if quick else (middle, 32768)
    for head_dim in (64, 128):
        for dtype in DTYPES:
            for tokens in lengths if head_dim == 64 else wide_lengths:
                yield _forward_case(tokens, 0.1, head_dim, dtype, device, judged=True)
            for density in () if head_dim == 128 else (0.5, 0.2, 0.05, 0.02):
                yield _forward_case(middle, density, head_dim, dtype, device, judged=False)
    yield Case(
        "attention",
        f"forward and backward, {middle} tokens, 10 %, head dim 64, fp32",
        partial(training, middle, 0.1, device),
        (Goal("gathered", "sdpa dense", 4.0, 2.3),),
    )
    yield Case(
        "attention",
        f"map against attention, {middle} tokens, fp32",
        partial(map_building, middle, device),
        (Goal("map", "gathered", 50.0, 20.0),),
    )
    if device.type == "cpu":  # a process that keeps a core busy takes nothing from an accelerator
        yield Case(
            "attention",
            f"one other busy process, {middle} tokens, 10 %, head dim 64, fp32",
            partial(disturbed, middle),
            # unchanged is the goal: that of the same work on a quiet machine
            (Goal("gathered", "sdpa dense", GOALS[64, "fp32"][2], 4.0),),
        )


def _goals(tokens: int, head_dim: int, dtype: str) -> Iterator[Goal]:
    """At 10 % density, of the backends that are here."""
    if 8192 <= tokens <= 32768:
        compiled_goal, compiled_least, goal, least = GOALS[head_dim, dtype]
        yield Goal("gathered", "sdpa dense", goal, least)
        if missing("compiled") is None:
            yield Goal("compiled", "sdpa dense", compiled_goal, compiled_least)
    if tokens >= 32768 and dtype == "bf16":
        for name in ("flex", "block_sparse"):
            if missing(name) is None:
                yield Goal(name, "sdpa dense", *PREDICTED_ON_CUDA, device="cuda")


def _forward_case(
    tokens: int, density: float, head_dim: int, dtype: str, device: torch.device, *, judged: bool
) -> Case:
    return Case(
        "attention",
        f"{tokens} tokens, {density:.0%}, head dim {head_dim}, {dtype}",
        partial(forward, tokens, density, head_dim, DTYPES[dtype], device),
        tuple(_goals(tokens, head_dim, dtype)) if judged else (),
        repeats=5 if tokens > 16384 else 9,
        facts={
            "tokens": tokens,
            "density": density,
            "head_dim": head_dim,
            "dtype": dtype,
            "ideal": round(1 / density, 1),
            "gflop_dense": round(4 * HEADS * tokens**2 * head_dim / 1e9, 1),
            "blocks": math.ceil(tokens / BLOCK),
        },
    )
