"""Steps of whole networks against diffusers: dense, and sparse in the proportions of 10 s clips."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import partial

import torch

from kandinsky_core.attention import MapReport, Nabla, attend_gathered, load_backend
from kandinsky_core.family.config import DiTConfig
from kandinsky_core.models import CrossDiT

from .case import Case, Goal
from .meter import Run
from .reference import build_pair, make_inputs, patch_nabla, run_upstream

ROPE_SCALE = (1.0, 2.0, 2.0)
SMALL = DiTConfig(256, 1024, 256, 1, 2, (16, 24, 24), text_dim=64, pooled_dim=64)
LITE_BLOCK = DiTConfig(1792, 7168, 512, 1, 1, (16, 24, 24), text_dim=64, pooled_dim=64)
TEN_SECONDS = (61, 32, 64)
"""Latent cells (t, h, w): 31,232 tokens, the frames of a 10 s clip at a third of its area."""
EIGHT_THOUSAND = (16, 32, 64)
"""8,192 tokens."""
LITE_TEN_SECONDS = (61, 64, 96)
"""93,696 tokens: 10 s of 512 x 768 pixels, in a GPU's reach alone."""
PREDICTED_ON_CUDA = (4.1, 3.4)
"""Bounds of docs/benchmarks/reading.md for a step of Lite 10 s at 10 % density against dense."""
TOY = (2, 32, 32)
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


@torch.no_grad()
def nabla_of_density(model: CrossDiT, inputs: dict, density: float) -> Nabla:
    """NABLA whose P gives about the wanted density on this input, found by bisection.

    The window is (1, 3, 3): at the released one's width a third of so small a grid is window.
    """
    low, high, nabla = 0.0, 1.0, Nabla(0.5, (1, 8, 8), (1, 3, 3))
    for _ in range(7):
        seen: list[float] = []

        def note(report: MapReport, seen: list[float] = seen) -> None:
            seen.append(float(report.density.mean()))

        nabla = replace(nabla, cdf_threshold=(low + high) / 2, observe=note)
        model(**inputs, rope_scale=ROPE_SCALE, nabla=nabla)
        found = sum(seen) / len(seen)
        low, high = (low, nabla.cdf_threshold) if found > density else (nabla.cdf_threshold, high)
    return replace(nabla, observe=None)


def dense(
    config: DiTConfig, latent_thw: tuple[int, int, int], dtype: torch.dtype, device: torch.device
) -> dict[str, Run]:
    """Return a dense step of both."""
    ours, theirs = build_pair(config, dtype, device)
    inputs = make_inputs(config, latent_thw, dtype, device)
    return {
        "diffusers": torch.no_grad()(
            partial(run_upstream, theirs, **inputs, rope_scale=ROPE_SCALE)
        ),
        "ours": torch.no_grad()(partial(ours, **inputs, rope_scale=ROPE_SCALE)),
    }


def sparse(
    config: DiTConfig,
    latent_thw: tuple[int, int, int],
    dtype: torch.dtype,
    density: float,
    device: torch.device,
    *,
    left_out: str = "",
) -> dict[str, Run]:
    """Return a sparse step of ours, eager and compiled around attention, against diffusers dense.

    Attention is plain PyTorch's, whatever `auto` would take; on CUDA also FlexAttention, whose
    kernel works on tensor cores. One candidate can be left out where it takes too long.
    """
    ours, theirs = build_pair(config, dtype, device)
    inputs = make_inputs(config, latent_thw, dtype, device)
    nabla = nabla_of_density(ours, inputs, density)
    compiled = torch.compile(ours, dynamic=False)
    # around attention: its shapes follow the map, and traced they would be compiled map by map
    apart = torch.compiler.disable(attend_gathered)
    step = partial(ours, **inputs, rope_scale=ROPE_SCALE)
    steps: dict[str, Run] = {
        "diffusers dense": partial(run_upstream, theirs, **inputs, rope_scale=ROPE_SCALE),
        "ours dense": step,
        "ours sparse": partial(step, nabla=nabla, attend=attend_gathered),
        "ours sparse, compiled": partial(
            compiled, **inputs, rope_scale=ROPE_SCALE, nabla=nabla, attend=apart
        ),
    }
    if device.type == "cuda":
        steps["ours sparse, flex"] = partial(step, nabla=nabla, attend=load_backend("flex"))
    return {name: torch.no_grad()(run) for name, run in steps.items() if name != left_out}


def sparse_both(
    config: DiTConfig,
    latent_thw: tuple[int, int, int],
    dtype: torch.dtype,
    density: float,
    device: torch.device,
) -> dict[str, Run]:
    """Return a sparse step of both with the same P and window."""
    patch_nabla()
    ours, theirs = build_pair(config, dtype, device)
    inputs = make_inputs(config, latent_thw, dtype, device)
    nabla = nabla_of_density(ours, inputs, density)
    steps = {"diffusers NABLA": partial(run_upstream, theirs), "ours NABLA": ours}
    return {
        name: torch.no_grad()(partial(step, **inputs, rope_scale=ROPE_SCALE, nabla=nabla))
        for name, step in steps.items()
    }


def cases(quick: bool, device: torch.device) -> Iterator[Case]:
    """Dense steps, one block of Lite's width, sparse steps."""
    dense_goals = {"fp32": (1.25, 1.08), "bf16": (1.5, 1.2)}
    sparse_goals = {"fp32": (6.0, 4.2), "bf16": (5.0, 3.4)}
    for name, dtype in DTYPES.items():
        size = TOY if quick else EIGHT_THOUSAND
        yield Case(
            "model",
            f"dense step, width 256, {_tokens(size)} tokens, {name}",
            partial(dense, SMALL, size, dtype, device),
            (
                Goal("ours", "diffusers", *dense_goals[name]),
                Goal("ours", "diffusers", 0.5, 0.8, memory=True),
            ),
            repeats=5,
        )
    size, block = (TOY, SMALL) if quick else (EIGHT_THOUSAND, LITE_BLOCK)
    on_cpu = device.type == "cpu"
    yield Case(
        "model",
        f"step of one block, width {block.model_dim}{'' if quick else ' (Lite)'}, "
        f"{_tokens(size)} tokens, dense and 10 %, bf16",
        partial(
            sparse,
            block,
            size,
            torch.bfloat16,
            0.1,
            device,
            left_out="ours sparse, compiled" if on_cpu else "",
        ),
        repeats=3,
    )
    for name, dtype in DTYPES.items():
        size = TOY if quick else TEN_SECONDS
        yield Case(
            "model",
            f"sparse step, width 256, {_tokens(size)} tokens, 10 %, {name}",
            # our dense step is held against diffusers' above, in seconds instead of minutes
            partial(
                sparse, SMALL, size, dtype, 0.1, device, left_out="ours dense" if on_cpu else ""
            ),
            (Goal("ours sparse, compiled", "diffusers dense", *sparse_goals[name]),),
            repeats=3,
        )
    if device.type == "cuda" and not quick:
        yield Case(
            "model",
            f"sparse step of one block of Lite's width, {_tokens(LITE_TEN_SECONDS)} tokens, "
            "10 %, bf16",
            partial(sparse, LITE_BLOCK, LITE_TEN_SECONDS, torch.bfloat16, 0.1, device),
            (Goal("ours sparse, flex", "ours dense", *PREDICTED_ON_CUDA, device="cuda"),),
            repeats=3,
        )
    size = TOY if quick else EIGHT_THOUSAND
    yield Case(
        "model",
        f"NABLA step of both, width 256, {_tokens(size)} tokens, 10 %, fp32",
        partial(sparse_both, SMALL, size, torch.float32, 0.1, device),
        (
            Goal("ours NABLA", "diffusers NABLA", 4.0, 2.5),
            Goal("ours NABLA", "diffusers NABLA", 0.5, 0.8, memory=True),
        ),
        repeats=5,
    )


def _tokens(latent_thw: tuple[int, int, int]) -> int:
    t, h, w = latent_thw
    return t * (h // 2) * (w // 2)
