"""Attention kernels of other packages: flash-attn, sageattention, fastvideo-kernel.

They need CUDA. What is checked here is how they are called, against stand-ins; whoever has the
hardware checks the results (`attend_reference` is the specification). Each hands what its
kernel cannot do to another backend, which computes the same.
Letters: B batch, N heads, S queries, K head dim.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..api import Attend
from ..block_map import BlockMap
from ..full_heads import full_heads_apart


class Package(NamedTuple):
    """A function of a package that may be installed."""

    module: str
    """Where to import it from."""
    function: str
    """Name of the function in that module."""
    project: str
    """Package to install, as its index spells it."""
    adapt: Callable[[Any, Attend], Attend]
    """Makes an `Attend` of it, and of one for what it cannot do."""

    def load(self) -> Callable[..., Any]:
        """Import the function.

        Raises:
            ImportError: It is not there.
        """
        module = importlib.import_module(self.module)
        try:
            return getattr(module, self.function)
        except AttributeError as error:
            raise ImportError(f"{self.module} has no {self.function}") from error


def fits_kernels(q: Tensor) -> bool:
    """Return whether a tensor is what all these kernels take: 16 bits, on CUDA, usual head dim."""
    is_half = q.dtype in (torch.float16, torch.bfloat16)
    return is_half and q.device.type == "cuda" and q.shape[-1] in (64, 128)


def adapt_flash(kernel: Any, otherwise: Attend) -> Attend:
    """Adapt flash-attn: dense, exact, forward and backward."""

    def attend_flash(
        q: Tensor,
        k: Tensor,
        v: Tensor,
        *,
        mask: Tensor | None = None,
        block_map: BlockMap | None = None,
    ) -> Tensor:
        if mask is not None or block_map is not None or not fits_kernels(q):
            return otherwise(q, k, v, mask=mask, block_map=block_map)
        q, k, v = (x.transpose(1, 2) for x in (q, k, v))  # (B, S, N, K)
        return kernel(q, k, v, causal=False).transpose(1, 2)

    return attend_flash


def adapt_sage(kernel: Any, otherwise: Attend) -> Attend:
    """Adapt sageattention: dense, 8-bit products, an approximation; forward alone."""

    def attend_sage(
        q: Tensor,
        k: Tensor,
        v: Tensor,
        *,
        mask: Tensor | None = None,
        block_map: BlockMap | None = None,
    ) -> Tensor:
        wants_grad = torch.is_grad_enabled() and any(x.requires_grad for x in (q, k, v))
        if mask is not None or block_map is not None or wants_grad or not fits_kernels(q):
            return otherwise(q, k, v, mask=mask, block_map=block_map)
        return kernel(q, k, v, tensor_layout="HND", is_causal=False)

    return attend_sage


def fits_block_sparse(q: Tensor, k: Tensor, block_map: BlockMap) -> bool:
    """Return whether fastvideo-kernel takes these queries, keys and blocks."""
    return (
        block_map.block_size == 64
        and k.shape[2] == q.shape[2]
        and q.dtype == torch.bfloat16
        and fits_kernels(q)
    )


def adapt_block_sparse(kernel: Any, otherwise: Attend) -> Attend:
    """Adapt fastvideo-kernel: block-sparse over blocks of 64 tokens, forward and backward."""

    @full_heads_apart
    def attend_block_sparse(
        q: Tensor,
        k: Tensor,
        v: Tensor,
        *,
        mask: Tensor | None = None,
        block_map: BlockMap | None = None,
    ) -> Tensor:
        assert block_map is not None
        if mask is not None or not fits_block_sparse(q, k, block_map):
            return otherwise(q, k, v, mask=mask, block_map=block_map)
        kept = block_map.kept
        sizes = torch.full((kept.shape[-1],), 64, dtype=torch.int32, device=q.device)
        q, k, v = (x.contiguous() for x in (q, k, v))
        out, _ = kernel(q, k, v, kept.contiguous(), sizes)
        empty = block_map.row_counts == 0  # (B, N, Q)
        return out.masked_fill(empty.repeat_interleave(64, -1)[..., None], 0.0)

    return attend_block_sparse


PACKAGES = {
    "flash": Package("flash_attn", "flash_attn_func", "flash-attn", adapt_flash),
    "sage": Package("sageattention", "sageattn", "sageattention", adapt_sage),
    "block_sparse": Package(
        "fastvideo_kernel.block_sparse_attn",
        "block_sparse_attn",
        "fastvideo-kernel",
        adapt_block_sparse,
    ),
}
"""Name of the backend -> where its kernel comes from."""
