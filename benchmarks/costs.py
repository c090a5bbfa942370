"""On paper: what the large models should take per step, from the count of operations.

`python -m benchmarks.costs` writes docs/benchmarks/costs.md. Nothing here was measured by this
project: published times of one H100 are divided by our counts, and densities and other times
follow from that.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import NamedTuple

from kandinsky_core.costs import step_cost
from kandinsky_core.files import atomic_write
from kandinsky_core.models import call_bytes
from kandinsky_core.variants import VARIANTS

TERA, GIB = 1e12, 2**30
DENSITIES = (1.0, 0.5, 0.2, 0.1, 0.05)

INTRODUCTION = (
    "Made by `python -m benchmarks.costs` from our own count of operations",
    "(`kandinsky_core/costs.py`, which the tests hold against torch's counter) and the",
    "published times of one H100 (arXiv 2511.14993, table 5, 100 evaluations). **A calculation,",
    "not a measurement**: no GPU was used.",
)
OF_TIMES = (
    "Sparse attention is taken to run at the speed of dense attention per operation, which a",
    "kernel over blocks of 64 reaches only where its gathers are hidden; the map costs 1/4096",
    "of the products and a sort. What is left at low density are the linear layers: they bound",
    "the gain.",
)
OF_MEMORY = (
    "Weights, and the tensors alive at the widest point of a block with dense attention, for one",
    "row of a batch. They hardly depend on density: a boolean block map takes (tokens / 64)^2",
    "bytes a head more. What a whole job takes, stage by stage: docs/memory.md.",
)
TO_CHECK = (
    'On a machine with a CUDA device, `make bench ARGS="--device cuda --groups model"` measures',
    "one block of Lite's width at the tokens of Lite 10 s, dense and at 10 % density; compare the",
    "ratio with that of the row above.",
)


class Published(NamedTuple):
    """A row of table 5 of arXiv 2511.14993: one H100, 100 evaluations."""

    name: str
    variant: str
    tokens: int
    seconds: float
    """Of 100 evaluations."""
    sparse: bool
    """Whether it ran with NABLA."""


ROWS = (
    Published("Lite 5 s, 512x768", "video_lite", 47_616, 139, False),
    Published("Lite 10 s, 512x768", "video_lite", 93_696, 224, True),
    Published("Pro 5 s, 512x768", "video_pro", 47_616, 560, False),
    Published("Pro 10 s, 512x768", "video_pro", 93_696, 1158, True),
    Published("Pro 5 s, 768x1280", "video_pro", 119_040, 1241, True),
    Published("Pro 10 s, 768x1280", "video_pro", 234_240, 3218, True),
)


def speed_of(variant: str) -> float:
    """Operations per second of a size, from its published dense row."""
    row = next(row for row in ROWS if row.variant == variant and not row.sparse)
    return step_cost(VARIANTS[variant], row.tokens).operations / (row.seconds / 100)


def implied_density(row: Published) -> float:
    """Density at which a sparse row takes its published time at the speed of the dense one."""
    cost = step_cost(VARIANTS[row.variant], row.tokens)
    left = row.seconds / 100 * speed_of(row.variant) - cost.linear - cost.cross_attention
    return left / cost.attention


def markdown() -> str:
    """The page."""
    lines = [
        "# What a step of the large models should take",
        "",
        *INTRODUCTION,
        "",
        "Speeds are those that the published dense rows imply: "
        + ", ".join(
            f"{variant} {speed_of(variant) / TERA:.0f} TFLOP/s"
            for variant in dict.fromkeys(row.variant for row in ROWS)
        )
        + ". The density of a",
        "sparse row is what makes its published time come out at the same speed.",
        "",
        "| | tokens | linear, TFLOP | dense attention, TFLOP | share of attention | "
        "published s per step | implied density |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in ROWS:
        cost = step_cost(VARIANTS[row.variant], row.tokens)
        density = f"{implied_density(row):.2f}" if row.sparse else "1 (dense)"
        lines.append(
            f"| {row.name} | {row.tokens:,} | {cost.linear / TERA:.0f} | "
            f"{cost.attention / TERA:.0f} | {cost.attention / cost.operations:.0%} | "
            f"{row.seconds / 100:.2f} | {density} |"
        )
    lines += [
        "",
        "## Seconds per step by density, predicted",
        "",
        *OF_TIMES,
        "",
        "| | " + " | ".join(f"{density:.0%}" for density in DENSITIES) + " | bound |",
        "|---|" + "---|" * (len(DENSITIES) + 1),
    ]
    for row in ROWS:
        config, speed = VARIANTS[row.variant], speed_of(row.variant)
        costs = [step_cost(config, row.tokens, density=density) for density in DENSITIES]
        bound = costs[0].operations / (costs[0].linear + costs[0].cross_attention)
        times = " | ".join(f"{cost.operations / speed:.2f}" for cost in costs)
        lines.append(f"| {row.name} | {times} | {bound:.1f}x |")
    lines += [
        "",
        "## Memory, bf16",
        "",
        *OF_MEMORY,
        "",
        "| | weights, GiB | activations, GiB | block maps of one layer, GiB |",
        "|---|---|---|---|",
    ]
    for row in ROWS:
        config = VARIANTS[row.variant]
        cost = step_cost(config, row.tokens)
        activations = call_bytes(config, row.tokens)
        maps = config.num_heads * (row.tokens / 64) ** 2
        lines.append(
            f"| {row.name} | {2 * cost.weights / GIB:.1f} | {activations / GIB:.1f} | "
            f"{maps / GIB:.2f} |"
        )
    lines += [
        "",
        *TO_CHECK,
    ]
    return "\n".join(lines) + "\n"


def main() -> None:
    """Write the page."""
    path = Path("docs/benchmarks/costs.md")
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path) as part:
        part.write_text(markdown(), encoding="utf-8")
    sys.stdout.write(f"{path}\n")


if __name__ == "__main__":
    main()
