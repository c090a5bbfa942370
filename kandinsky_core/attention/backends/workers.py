"""Run independent pieces of CPU work on threads that take one whenever they are free.

OpenMP gives every thread an equal share and waits for the last, so one other busy process
stalls every operation. Threads that take the next piece when they are done do not wait.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import torch

Piece = TypeVar("Piece")


def run_pieces(
    pieces: Sequence[Piece], make_worker: Callable[[], Callable[[Piece], None]], *, parallel: bool
) -> None:
    """Run a worker over pieces, under no_grad.

    Args:
        pieces: The work, largest first.
        make_worker: Makes one worker per thread; the worker may hold buffers.
        parallel: Whether to share torch's threads out; otherwise the caller does everything.
    """
    num_threads = torch.get_num_threads()
    count = min(num_threads, len(pieces)) if parallel else 1
    queue = iter(pieces)
    inference = torch.is_inference_mode_enabled()  # threads do not inherit it

    def drain() -> None:
        if count > 1:
            torch.set_num_threads(num_threads // count)
        with torch.inference_mode(inference), torch.no_grad():
            worker = make_worker()
            for piece in queue:
                worker(piece)

    if count <= 1:
        drain()
        return
    try:
        with ThreadPoolExecutor(count, "attention") as pool:
            for future in [pool.submit(drain) for _ in range(count)]:
                future.result()
    finally:
        # the calling thread never lost its number; this is what threads to come start with
        torch.set_num_threads(num_threads)
