"""What was found of each fault so far, a line of a file each: a run goes on where it stopped."""

from __future__ import annotations

import difflib
import json
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from .sample import Mutant
from .tree import FOLDERS, Tree

CAUGHT = ("failed", "broken", "timeout")
"""A test failed; the tests could not even be collected; they did not end."""


@dataclass(frozen=True)
class Verdict:
    """On one fault."""

    mutant: str
    """Its name."""
    outcome: str
    """One of CAUGHT, "survived", or "unreached" where no test runs it."""
    test: str = ""
    """That failed."""
    asked: int = 0
    """Number of tests that were chosen."""
    reaching: int = 0
    """Number of tests that run the statement."""

    @property
    def is_caught(self) -> bool:
        return self.outcome in CAUGHT


class Verdicts:
    """All that is known of a sample.

    Args:
        path: Of the file, which need not exist.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
        verdicts = [Verdict(**json.loads(line)) for line in lines]
        self.known = {verdict.mutant: verdict for verdict in verdicts}

    def add(self, verdict: Verdict) -> None:
        """Keep a verdict at once, in place of an earlier one."""
        self.known[verdict.mutant] = verdict
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(asdict(verdict)) + "\n")

    def summary(self, mutants: Sequence[Mutant]) -> str:
        """Return a table in Markdown: a row for each folder, and the sum."""
        rows = [(folder, [m for m in mutants if m.folder == folder]) for folder in FOLDERS]
        lines = ["| folder | planted | of | caught | share |", "|---|---|---|---|---|"]
        for name, chosen in [*rows, ("all", list(mutants))]:
            found = [self.known[m.name] for m in chosen if m.name in self.known]
            caught = sum(verdict.is_caught for verdict in found)
            share = f"{100 * caught / len(found):.0f} %" if found else ""
            lines.append(f"| {name} | {len(found)} | {len(chosen)} | {caught} | {share} |")
        outcomes = Counter(self.known[m.name].outcome for m in mutants if m.name in self.known)
        counted = ", ".join(f"{count} {name}" for name, count in outcomes.most_common())
        return "\n".join([*lines, "", counted])

    def survivors(self, mutants: Iterable[Mutant], tree: Tree) -> str:
        """Return what no test saw, with the line before and after."""
        lines = []
        for mutant in mutants:
            verdict = self.known.get(mutant.name)
            if verdict is None or verdict.is_caught:
                continue
            lines.append(f"{mutant.name} ({verdict.outcome}, {verdict.asked} tests)")
            lines += [f"    {line}" for line in change(mutant, tree)]
        return "\n".join(lines)


def change(mutant: Mutant, tree: Tree) -> list[str]:
    """Return the lines that a fault takes away (-) and puts (+)."""
    source = tree.read(mutant.file)
    planted = mutant.plant(source)
    found = difflib.unified_diff(source.splitlines(), planted.splitlines(), n=0, lineterm="")
    return [line for line in found if line[:1] in "+-" and line[:3] not in ("+++", "---")]
