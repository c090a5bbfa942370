"""`python -m benchmarks`: run the cases and write docs/benchmarks."""

from __future__ import annotations

import argparse
import gc
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from tqdm import tqdm

from . import attention, family, model, report, vae
from .case import Case, Cases, Result
from .measure import compare

GROUPS: dict[str, Cases] = {
    "attention": attention.cases,
    "model": model.cases,
    "vae": vae.cases,
    "family": family.cases,
}


def run(case: Case, *, quick: bool = False) -> Result:
    """Measure one case; its inputs are gone afterwards."""
    repeats = 3 if quick else case.repeats
    with torch.no_grad():
        readings = compare(case.build(), repeats=repeats)
    gc.collect()
    torch.compiler.reset()
    return Result(case, readings)


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--groups", nargs="+", choices=list(GROUPS), default=list(GROUPS))
    parser.add_argument("--only", default="", help="cases whose name contains this")
    parser.add_argument("--quick", action="store_true", help="toy sizes: proves that it runs")
    parser.add_argument("--out", type=Path, default=Path("docs/benchmarks"))
    args = parser.parse_args(arguments)
    chosen = [
        case
        for group in args.groups
        for case in GROUPS[group](args.quick)
        if args.only in case.name
    ]
    results = []
    for case in (bar := tqdm(chosen, unit="case", disable=None)):
        bar.set_description(case.name)
        results.append(run(case, quick=args.quick))
        report.write(results, args.out)  # a stopped run leaves what it measured
    sys.stdout.write(f"{args.out / 'report.md'}\n")


if __name__ == "__main__":
    main()
