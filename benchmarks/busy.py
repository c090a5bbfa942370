"""Another process that keeps one core busy while something is measured."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable

_LOOP = "import time\nend = time.time() + 300\nwhile time.time() < end: sum(range(10000))\n"


def busy_process(run: Callable[[], object]) -> Callable[[], object]:
    """Return the same run, beside a loop in another process, which ends by itself after five
    minutes."""

    def beside() -> object:
        with subprocess.Popen([sys.executable, "-c", _LOOP]) as other:
            try:
                return run()
            finally:
                other.kill()

    return beside
