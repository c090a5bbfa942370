"""The backend used where nobody chooses one."""

from __future__ import annotations

from torch import Tensor

from .backends.dense import attend_dense
from .backends.gathered import attend_gathered
from .block_map import BlockMap


def attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    mask: Tensor | None = None,
    block_map: BlockMap | None = None,
) -> Tensor:
    """Dense attention, or the kept blocks alone; arguments and result as in `Attend`."""
    if block_map is None:
        return attend_dense(q, k, v, mask=mask)
    return attend_gathered(q, k, v, mask=mask, block_map=block_map)
