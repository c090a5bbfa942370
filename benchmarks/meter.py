"""A clock and a gauge of memory for each device.

A processor is done when a call returns, and Linux keeps the largest resident set of a process and
lets it be reset. An accelerator works on after the call: its clock waits for it, and its memory is
what torch's allocator gave out there.
"""

from __future__ import annotations

import ctypes
import gc
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch

Run = Callable[[], object]


class Meter(Protocol):
    """What is read before and after a candidate runs."""

    def now(self) -> float:
        """Return the time in seconds, once everything is done that was asked for before."""
        ...

    def peak_bytes(self, run: Run) -> int | None:
        """Return the most memory, in bytes, that one run takes above what was taken before; None if
        unknown."""
        ...


class HostMeter:
    """Of the process: its time, and its resident set, which only Linux tells."""

    def now(self) -> float:
        """Return the time in seconds."""
        return time.perf_counter()

    def peak_bytes(self, run: Run) -> int | None:
        """Largest resident set of one run above what was resident before; None off Linux."""
        reset, status = Path("/proc/self/clear_refs"), Path("/proc/self/status")
        if not sys.platform.startswith("linux") or not status.exists():
            return None
        gc.collect()
        ctypes.CDLL(None).malloc_trim(0)
        try:
            reset.write_text("5")
        except OSError:
            return None
        before = _status(status, "VmRSS")
        run()
        return max(0, _status(status, "VmHWM") - before)


@dataclass(frozen=True)
class AcceleratorMeter:
    """Of a device that works behind a queue."""

    backend: Any
    """`torch.cuda` or `torch.mps`."""

    def now(self) -> float:
        """Return the time in seconds, once the queue is empty."""
        self.backend.synchronize()
        return time.perf_counter()

    def peak_bytes(self, run: Run) -> int | None:
        """Most bytes of tensors during one run above those there before; None on MPS."""
        if not hasattr(self.backend, "max_memory_allocated"):
            return None
        gc.collect()
        self.backend.synchronize()
        self.backend.reset_peak_memory_stats()
        before = self.backend.memory_allocated()
        run()
        self.backend.synchronize()
        return self.backend.max_memory_allocated() - before


def meter_of(device: torch.device) -> Meter:
    """Return the meter of a device."""
    if device.type == "cpu":
        return HostMeter()
    return AcceleratorMeter({"cuda": torch.cuda, "mps": torch.mps}[device.type])


def _status(path: Path, key: str) -> int:
    """Return an entry of /proc/self/status in bytes."""
    line = next(line for line in path.read_text().splitlines() if line.startswith(key + ":"))
    return int(line.split()[1]) * 1024
