"""`python -m benchmarks`: run the cases and write docs/benchmarks."""

from __future__ import annotations

import argparse
import gc
import sys
from collections.abc import Sequence
from datetime import date
from pathlib import Path

import torch
from tqdm import tqdm

from . import attention, family, model, records, report, vae
from .case import Case, Cases, Result
from .device import DEVICES, find_device, machine
from .measure import compare
from .meter import Meter, meter_of

GROUPS: dict[str, Cases] = {
    "attention": attention.cases,
    "model": model.cases,
    "vae": vae.cases,
    "family": family.cases,
}


def run(case: Case, device: torch.device, meter: Meter, *, quick: bool = False) -> Result:
    """Measure one case; its inputs are gone afterwards."""
    repeats = 3 if quick else case.repeats
    with torch.no_grad():
        readings = compare(case.build(), meter, repeats=repeats)
    gc.collect()
    torch.compiler.reset()
    goals = tuple(goal for goal in case.goals if goal.device == device.type)
    return Result(case.name, readings, goals, case.facts)


def default_folder(device: torch.device, *, partial: bool) -> Path:
    """Where a run goes: each device has a report, and parts of groups are none."""
    folder = Path("artifacts/benchmarks" if partial else "docs/benchmarks")
    return folder if device.type == "cpu" else folder / device.type


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--device", choices=DEVICES, default="cpu", help="where everything runs")
    parser.add_argument(
        "--groups",
        nargs="+",
        choices=list(GROUPS),
        default=list(GROUPS),
        help="what to measure; the report keeps what it holds of the others",
    )
    parser.add_argument("--only", default="", help="cases whose name contains this")
    parser.add_argument("--quick", action="store_true", help="toy sizes: proves that it runs")
    parser.add_argument(
        "--out",
        type=Path,
        help="folder; by default docs/benchmarks, docs/benchmarks/DEVICE for other devices than "
        "the CPU, and the same in artifacts/ with --only or --quick",
    )
    args = parser.parse_args(arguments)
    try:
        device = find_device(args.device)
        out = args.out or default_folder(device, partial=bool(args.only or args.quick))
        sections = records.read(out)
    except ValueError as error:
        parser.error(str(error))
    chosen = [
        case
        for group in args.groups
        for case in GROUPS[group](args.quick, device)
        if args.only in case.name
    ]
    facts, today, meter = machine(device), date.today().isoformat(), meter_of(device)
    results: dict[str, list[Result]] = {}
    for case in (bar := tqdm(chosen, unit="case", disable=None)):
        bar.set_description(case.name)
        of_group = results.setdefault(case.group, [])
        of_group.append(run(case, device, meter, quick=args.quick))
        sections[case.group] = records.Section(facts, today, tuple(of_group))
        report.write(sections, out)  # a stopped run leaves what it measured
    sys.stdout.write(f"{out / 'report.md'}\n")


if __name__ == "__main__":
    main()
