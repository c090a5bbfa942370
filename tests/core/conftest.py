"""Fixtures that several test files share."""

from __future__ import annotations

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode


class PeakMemory(TorchDispatchMode):
    """Largest number of bytes held by tensors made inside the context.

    Args:
        given: Tensors that were there before, whose views do not count.
    """

    def __init__(self, *given: torch.Tensor) -> None:
        super().__init__()
        self.peak = 0
        self.given = {tensor.untyped_storage()._cdata for tensor in given}
        self.storages: dict[int, torch.UntypedStorage] = {}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, tuple | list) else (result,):
            if isinstance(tensor, torch.Tensor):
                storage = tensor.untyped_storage()
                if storage._cdata not in self.given:
                    self.storages.setdefault(storage._cdata, storage._weak_ref())
        self.storages = {
            key: weak
            for key, weak in self.storages.items()
            if not torch.UntypedStorage._expired(weak)
        }
        held = 0
        for weak in self.storages.values():
            storage = torch.UntypedStorage._new_with_weak_ptr(weak)
            held += storage.nbytes()
        self.peak = max(self.peak, held)
        return result


@pytest.fixture
def peak_memory():
    """Counts bytes of tensors: `with peak_memory(*given) as memory: ...; memory.peak`.

    It sees the operations of its own thread alone, so there is one.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield PeakMemory
    torch.set_num_threads(before)
