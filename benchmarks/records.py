"""What was measured, as results.json keeps it: each group with the machine and the day of its run.

A run replaces the groups it measured and leaves the others, so that a report of everything can
be made a group at a time.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from .case import Goal, Result
from .measure import Reading

FILE = "results.json"


@dataclass(frozen=True)
class Section:
    """One group, from one run."""

    machine: dict[str, Any]
    """What it was measured on."""
    date: str
    """When, as YYYY-MM-DD."""
    results: tuple[Result, ...]


def as_data(sections: Mapping[str, Section]) -> dict[str, Any]:
    """Everything that was measured, for programs."""
    return {
        "groups": {
            group: {
                "machine": section.machine,
                "date": section.date,
                "cases": [
                    {
                        "name": result.name,
                        "facts": result.facts,
                        "readings": {name: asdict(each) for name, each in result.readings.items()},
                        "goals": [
                            {**asdict(goal), "ratio": result.ratio(goal)} for goal in result.goals
                        ],
                    }
                    for result in section.results
                ],
            }
            for group, section in sections.items()
        }
    }


def read(folder: Path) -> dict[str, Section]:
    """Group -> what a folder holds of it; empty where nobody measured.

    Raises:
        ValueError: The file is of another format.
    """
    path = folder / FILE
    if not path.is_file():
        return {}
    try:
        groups = json.loads(path.read_text(encoding="utf-8"))["groups"]
        return {group: _section(data) for group, data in groups.items()}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(
            f"{path} is not what these benchmarks write ({type(error).__name__}: {error}); "
            "move it away, or name another folder with --out"
        ) from error


def _section(data: dict[str, Any]) -> Section:
    return Section(
        data["machine"],
        data["date"],
        tuple(
            Result(
                case["name"],
                {name: Reading(**each) for name, each in case["readings"].items()},
                tuple(
                    Goal(**{key: goal[key] for key in goal if key != "ratio"})
                    for goal in case["goals"]
                ),
                case["facts"],
            )
            for case in data["cases"]
        ),
    )
