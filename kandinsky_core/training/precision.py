"""In which dtype this machine trains fastest."""

from __future__ import annotations

import torch

BF16_UNITS = ("avx512_bf16", "amx_bf16")
"""CPU features that multiply bf16 matrices; without one, bf16 is emulated and slower than fp32."""


def compute_dtype() -> torch.dtype:
    """Return bf16 where the processor has units for it, else fp32; weights and sums stay fp32."""
    capabilities = getattr(torch.cpu, "get_capabilities", dict)()
    return torch.bfloat16 if any(capabilities.get(u) for u in BF16_UNITS) else torch.float32
