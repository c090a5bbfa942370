"""Answers that a stopped study finds again, one JSON line each.

The files are named by a checksum of the weights and settings, so that new weights never meet the
answers of old ones.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..distributed import Group

Row = dict[str, Any]
"""One answer: what was asked, which rows of the report are right, what it took."""
Place = tuple[str, int]
"""A list of questions (or a variant's answers to one), and the number of the question in it."""


def checksum(paths: Mapping[str, Path], settings: Mapping[str, float]) -> str:
    """Name weights and settings in twelve hexadecimal digits.

    Args:
        paths: Files of weights; their order counts.
        settings: Whatever else changes the answers.

    Returns:
        The start of a SHA-256.
    """
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode())
    for path in paths.values():
        digest.update(path.read_bytes())
    return digest.hexdigest()[:12]


@dataclass(frozen=True)
class Answers:
    """The answers of one study of one model."""

    folder: Path
    """Where the files are; made when the first answer is."""
    key: str
    """Start of the files' names, from `checksum`."""

    def read(self) -> dict[Place, Row]:
        """Read what all processes have answered; of two answers to a question the later one.

        A last line without its end was being written when its process was stopped, and is left out.
        """
        rows = {}
        for path in sorted(self.folder.glob(f"{self.key}-*.jsonl")):
            for line in path.read_text(encoding="utf-8").split("\n")[:-1]:
                if line:
                    row = json.loads(line)
                    rows[row["set"], row["index"]] = row
        return rows

    @contextmanager
    def go_on(
        self, group: Group | None = None
    ) -> Iterator[tuple[dict[Place, Row], Callable[[str, int, Row], None]]]:
        """Open the file of one process.

        Args:
            group: The processes that answer together, all of which must call this; None for one.

        Yields:
            What had been answered before, and a function (list, number, answer) that adds an
            answer, safe from then on.
        """
        group = group or Group()
        self.folder.mkdir(parents=True, exist_ok=True)
        done = self.read()
        group.barrier()  # nobody writes while another reads
        path = self.folder / f"{self.key}-{group.rank}.jsonl"
        _cut_unfinished_line(path)
        with path.open("a", encoding="utf-8") as file:

            def add(name: str, index: int, answer: Row) -> None:
                row = {"set": name, "index": index, **answer}
                file.write(json.dumps(row, ensure_ascii=False) + "\n")
                file.flush()

            yield done, add


def _cut_unfinished_line(path: Path) -> None:
    """Take away what stands behind the last end of a line."""
    if path.is_file():
        with path.open("rb+") as file:
            file.truncate(file.read().rfind(b"\n") + 1)
