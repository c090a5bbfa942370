"""Backends that depend on the machine: whether they work is known when they have been tried."""

from __future__ import annotations

import logging
from collections.abc import Callable

import torch
from torch import Tensor

from ..api import Attend
from ..block_map import BlockMap

logger = logging.getLogger(__name__)


class Tried:
    """A backend that is given up for good, with one line of the log, when it fails."""

    def __init__(self, name: str, load: Callable[[], Attend]) -> None:
        """Name a backend; nothing is loaded yet.

        Args:
            name: For the log.
            load: Gets the backend; raises ImportError with the reason where it is not there.
        """
        self._name = name
        self._load = load
        self._attend: Attend | None = None
        self._given_up = False

    def is_there(self) -> bool:
        """Load the backend if that was not tried yet.

        Returns:
            Whether it can be called; what it can compute is another matter.
        """
        if self._attend is None and not self._given_up:
            try:
                self._attend = self._load()
            except ImportError as error:
                self._given_up = True
                logger.info("sparse attention does without %s: %s", self._name, error)
            except Exception as error:  # a package of the user's may break in any way
                self._give_up(error)
        return not self._given_up

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, *, block_map: BlockMap) -> Tensor | None:
        """Attend; arguments as in `Attend`.

        Returns:
            Tensor (B, N, S, K), or None where the backend is not there or fails.

        Raises:
            torch.OutOfMemoryError: There was no memory, which is not the backend's fault.
        """
        if not self.is_there():
            return None
        assert self._attend is not None
        try:
            return self._attend(q, k, v, block_map=block_map)
        except torch.OutOfMemoryError:
            raise
        except Exception as error:  # compilers and kernels fail in ways of their own
            self._give_up(error)
            return None

    def _give_up(self, error: Exception) -> None:
        self._given_up = True
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        logger.warning(
            "the attention backend %s fails here and is left out from now on; another computes "
            "the same (%s)",
            self._name,
            reason,
        )
