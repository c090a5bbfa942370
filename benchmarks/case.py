"""What a benchmark is: named candidates for one piece of work, and the goal for their ratio."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import torch

from .measure import Reading
from .meter import Run


@dataclass(frozen=True)
class Goal:
    """Wanted ratio of medians, peer over ours; of peaks, ours over peer."""

    ours: str
    """Candidate that is judged."""
    peer: str
    """Candidate that it is held against."""
    goal: float
    """What we aim for."""
    least: float
    """What must be reached."""
    memory: bool = False
    """Whether peak memory is compared; then smaller is better."""
    device: str = "cpu"
    """Type of device that it was set for; it says nothing of others."""


@dataclass(frozen=True)
class Case:
    """One row of the tables."""

    group: str
    """Table it belongs to."""
    name: str
    """Row, with sizes in words."""
    build: Callable[[], dict[str, Run]]
    """Makes inputs and candidates; they are freed after the case."""
    goals: tuple[Goal, ...] = ()
    repeats: int = 7
    """Readings of each candidate."""
    facts: dict[str, float | str] = field(default_factory=dict)
    """What else the row should state: tokens, density, ..."""


@dataclass(frozen=True)
class Result:
    """A case that was run, without what it ran."""

    name: str
    """The case's."""
    readings: dict[str, Reading]
    """Candidate -> what was measured."""
    goals: tuple[Goal, ...] = ()
    facts: dict[str, float | str] = field(default_factory=dict)
    """The case's."""

    def ratio(self, goal: Goal) -> float | None:
        """Return what the goal asks for; None where memory could not be read."""
        ours, peer = self.readings[goal.ours], self.readings[goal.peer]
        if not goal.memory:
            return peer.seconds / ours.seconds
        if ours.peak_bytes is None or peer.peak_bytes is None or not peer.peak_bytes:
            return None
        return ours.peak_bytes / peer.peak_bytes


Cases = Callable[[bool, torch.device], Iterator[Case]]
"""All cases of a group on a device; True asks for toy sizes, which only prove that all runs."""
