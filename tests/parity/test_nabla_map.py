"""NABLA's block map against diffusers' `nablaT_v2` and `fast_sta_nabla`: the same, bit for bit."""

from __future__ import annotations

import pytest
import torch
from diffusers import Kandinsky5T2VPipeline
from diffusers.models.transformers.transformer_kandinsky import nablaT_v2

from kandinsky_core.attention import sliding_window, top_p_blocks

THRESHOLDS = (0.0, 0.2, 0.5, 0.9, 0.999, 1.0)


def reference_map(q: torch.Tensor, k: torch.Tensor, window: torch.Tensor, p: float):
    """Return the boolean map (B, N, Q, Q) inside the BlockMask that diffusers makes of (B, N, S,
    K)."""
    mask = nablaT_v2(q.transpose(1, 2), k.transpose(1, 2), window, thr=p)
    kept = torch.zeros(*q.shape[:2], q.shape[2] // 64, q.shape[2] // 64, dtype=torch.bool)
    counts, columns = mask.full_kv_num_blocks, mask.full_kv_indices
    assert not mask.kv_num_blocks.any()
    used = torch.arange(kept.shape[-1]) < counts[..., None]
    return kept.scatter(-1, columns.long(), used)


def queries_and_keys(kind: str, blocks: int, head_dim: int, dtype: torch.dtype):
    generator = torch.Generator().manual_seed(blocks)
    shape = (2, 3, blocks, 64, head_dim)

    def normal(*size: int) -> torch.Tensor:
        return torch.randn(*size, generator=generator)

    if kind == "noise":
        q, k = normal(*shape), normal(*shape)
    elif kind == "peaked":
        q, k = (normal(*shape[:3], 1, head_dim) * 2 + normal(*shape) for _ in range(2))
    elif kind == "constant":
        q, k = torch.ones(shape), torch.ones(shape)
    else:  # every block of keys occurs several times: ties within each row
        q, k = normal(*shape) * 3, normal(*shape) * 3
        k = k[:, :, torch.arange(blocks) // 3]
    return q.flatten(2, 3).to(dtype), k.flatten(2, 3).to(dtype)


@pytest.mark.parametrize("kind", ["noise", "peaked", "constant", "tied"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("blocks", "head_dim"), [(1, 64), (17, 64), (48, 128)])
def test_map_equals_diffusers(kind, dtype, blocks, head_dim) -> None:
    q, k = queries_and_keys(kind, blocks, head_dim, dtype)
    nothing = torch.zeros(1, 1, blocks, blocks, dtype=torch.bool)
    for p in THRESHOLDS:
        expected = reference_map(q, k, nothing, p)
        assert torch.equal(top_p_blocks(q, k, 64, p), expected)
        # as little memory as possible: one head and one row at a time
        assert torch.equal(top_p_blocks(q, k, 64, p, work_bytes=1), expected)


def test_map_of_views_equals_diffusers() -> None:
    # the network's queries are (B, S, N, K) in memory
    q, k = queries_and_keys("peaked", 20, 64, torch.float32)
    q, k = (x.transpose(1, 2).contiguous().transpose(1, 2) for x in (q, k))
    nothing = torch.zeros(1, 1, 20, 20, dtype=torch.bool)
    assert torch.equal(top_p_blocks(q, k, 64, 0.6), reference_map(q, k, nothing, 0.6))


@pytest.mark.parametrize("grid", [(1, 1, 1), (4, 3, 5), (13, 2, 4), (2, 9, 1)])
@pytest.mark.parametrize("window", [(11, 3, 3), (1, 1, 1), (3, 5, 3), (4, 2, 6)])
def test_sliding_window_equals_diffusers(grid, window) -> None:
    expected = Kandinsky5T2VPipeline.fast_sta_nabla(*grid, *window, device="cpu")
    assert torch.equal(sliding_window(grid, window), expected)
