"""On paper: what the large models should take per step, from the count of operations and bytes.

`python -m benchmarks.costs` writes docs/benchmarks/costs.md. Nothing here was measured by this
project: published times of one H100 are divided by our counts, and densities and other times
follow from that.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import NamedTuple

from kandinsky_core.attention import Nabla
from kandinsky_core.family.variants import VARIANTS
from kandinsky_core.files import write_text
from kandinsky_core.models import call_bytes
from kandinsky_core.planning.costs import step_cost, step_traffic

TERA, GIB = 1e12, 2**30
DENSITIES = (0.5, 0.2, 0.1, 0.05)
BLOCK = 64
"""Tokens of NABLA's tile."""
BANDWIDTH = 3.35e12
"""Bytes per second of an H100's memory (SXM), as its maker gives it."""

INTRODUCTION = (
    "Made by `python -m benchmarks.costs` from our own count of operations and bytes",
    "(`kandinsky_core/planning/costs.py`; the tests hold operations against torch's counter)",
    "and the published times of one H100 (arXiv 2511.14993, table 5, 100 evaluations). **A",
    "calculation, not a measurement**: no GPU was used.",
)
OF_TIMES = (
    "Sparse attention is taken to run at the speed of dense attention per operation; what its map",
    "takes is added. What is left at low density are the linear layers: they bound the gain.",
)
OF_BYTES = (
    "What the memory of an H100 needs for the bytes alone (bf16, 3.35 TB/s); no step is faster",
    "than this. *Blocks*: weights once, and input and result of every operation of the blocks.",
    "*Map*: means, products, softmax, sort and scatter of NABLA's maps, which do not depend on",
    "density. By density: kept keys and values read anew for every block of 64 queries, which is",
    "64 operations a byte and so 214 TFLOP/s; a kernel is faster only as far as blocks of queries",
    "share what is read, through the cache or by working on several at once. Where these columns",
    "are above those of the table before, gathering bounds such a kernel, not arithmetic.",
)
OF_MEMORY = (
    "In GiB: weights, and the tensors alive at the widest point of a block for one row of a batch,",
    "with dense attention and with NABLA by density, the map of one layer among them. Neither",
    "NABLA nor density counts for much: the widest point is where keys are rotated in fp32, and",
    "kept keys and values are gathered a piece at a time. What a whole job takes, stage by stage:",
    "docs/memory.md.",
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


def map_seconds(row: Published) -> float:
    """Return what the memory needs for making the maps of one step."""
    return step_traffic(VARIANTS[row.variant], row.tokens, block_size=BLOCK).maps / BANDWIDTH


def _percent(*columns: str) -> list[str]:
    """Head of a table with a column for every density."""
    names = [*columns, *(f"{density:.0%}" for density in DENSITIES)]
    return [f"| | {' | '.join(names)} |", "|---|" + "---|" * len(names)]


def markdown() -> str:
    """Return the page."""
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
        *_percent("bound of the gain", "dense"),
    ]
    for row in ROWS:
        config, speed = VARIANTS[row.variant], speed_of(row.variant)
        dense = step_cost(config, row.tokens)
        bound = dense.operations / (dense.linear + dense.cross_attention)
        sparse = (
            step_cost(config, row.tokens, density=density).operations / speed + map_seconds(row)
            for density in DENSITIES
        )
        times = " | ".join(f"{seconds:.2f}" for seconds in (dense.operations / speed, *sparse))
        lines.append(f"| {row.name} | {bound:.1f}x | {times} |")
    lines += [
        "",
        "## Seconds per step that bytes alone take",
        "",
        *OF_BYTES,
        "",
        *_percent("blocks", "map"),
    ]
    for row in ROWS:
        config = VARIANTS[row.variant]
        traffic = step_traffic(config, row.tokens, block_size=BLOCK)
        moved = [traffic.least - traffic.maps, traffic.maps]
        moved += [
            step_traffic(config, row.tokens, density=density, block_size=BLOCK).gathers
            for density in DENSITIES
        ]
        times = " | ".join(f"{number / BANDWIDTH:.2f}" for number in moved)
        lines.append(f"| {row.name} | {times} |")
    lines += ["", "## Memory, bf16", "", *OF_MEMORY, ""]
    lines += _percent("weights", "map of one layer", "dense")
    for row in ROWS:
        config = VARIANTS[row.variant]
        taken = [2 * step_cost(config, row.tokens).weights]
        taken += [config.num_heads * (row.tokens // BLOCK) ** 2, call_bytes(config, row.tokens)]
        taken += [
            call_bytes(config, row.tokens, nabla=Nabla(), density=density) for density in DENSITIES
        ]
        cells = " | ".join(f"{number / GIB:.2f}" for number in taken)
        lines.append(f"| {row.name} | {cells} |")
    lines += [
        "",
        *TO_CHECK,
    ]
    return "\n".join(lines) + "\n"


def main() -> None:
    """Write the page."""
    path = Path("docs/benchmarks/costs.md")
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, markdown())
    sys.stdout.write(f"{path}\n")


if __name__ == "__main__":
    main()
