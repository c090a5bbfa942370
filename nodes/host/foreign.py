"""NABLA on video transformers that this pack did not build: native Kandinsky 5, Wan, HunyuanVideo.

Our own network puts tokens into tile order once; others know nothing of tiles, so queries, keys and
values are put into it in each attention call, through the host's attention override, and the
result back. What is known of a call is its number of tokens: self-attention over exactly the
tokens of the latent, or over those and text behind them, is made sparse; everything else runs
as it did, and one line of the log says so. An override that was there before keeps its calls.

Letters: B batch, N heads, S visual tokens, L all tokens, K head dim.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping
from typing import Any

import comfy.patcher_extension
import torch
from comfy.model_patcher import ModelPatcher
from einops import rearrange
from torch import Tensor

from ...kandinsky_core.attention import Attend, Nabla, Tiling, sliding_window
from .attention import AttentionChoice

OVERRIDE = "optimized_attention_override"
"""Key of the host's transformer_options: what is called in place of its attention."""
GRID = "k5_token_grid"
"""Key of transformer_options: tokens (t, h, w) of the latent in this call."""
KEY = "k5_nabla"
"""Of the wrapper."""
MOST_TEXT = 4096
"""More tokens behind the visual ones than this are no text."""

Override = Callable[..., Tensor]


def with_foreign_nabla(model: ModelPatcher, choice: AttentionChoice) -> ModelPatcher:
    """Copy a MODEL of another class so that its visual self-attention is sparse.

    Args:
        model: A video transformer with a `patch_size`.
        choice: With attention "nabla"; there is no checkpoint to take other numbers from.

    Returns:
        The copy.

    Raises:
        ValueError: The MODEL has no tokens on a grid of time, height and width.
    """
    patch = getattr(getattr(model.model, "diffusion_model", None), "patch_size", None)
    if not isinstance(patch, tuple | list) or len(patch) != 3:
        raise ValueError(
            f"model: {type(model.model).__name__} has no patches of time, height and width, which "
            "NABLA's tiles are made of; give a video transformer such as Kandinsky 5 or Wan."
        )
    patch_thw = tuple(int(side) for side in patch)

    def note_grid(executor: Callable[..., Tensor], x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        # x, t, c_concat, c_crossattn, control, transformer_options: the host's own order
        *others, options = args
        grid = _token_grid(x, patch_thw)
        return executor(x, *others, {**options, GRID: grid}, **kwargs)

    patched = model.clone()
    patched.remove_wrappers_with_key(comfy.patcher_extension.WrappersMP.APPLY_MODEL, KEY)
    patched.add_wrapper_with_key(comfy.patcher_extension.WrappersMP.APPLY_MODEL, KEY, note_grid)
    options = patched.model_options.setdefault("transformer_options", {})
    before = options.get(OVERRIDE)
    if isinstance(before, SparseOverride):  # another NABLA node: this one takes its place
        before = before.before
    options[OVERRIDE] = SparseOverride(Nabla(**choice.changes), choice.attend, before)
    return patched


class SparseOverride:
    """What the host calls in place of its attention."""

    def __init__(self, nabla: Nabla, attend: Attend, before: Override | None) -> None:
        self.before = before
        self._nabla = nabla
        self._attend = attend
        self._said: set[str] = set()

    def __call__(self, func: Override, *args: Any, **kwargs: Any) -> Tensor:
        """Answer one call of `func(q, k, v, heads, mask=..., skip_reshape=..., ...)`."""
        options = kwargs.get("transformer_options") or {}
        q, k, v, heads = args[:4] if len(args) >= 4 else (*args[:3], kwargs.get("heads"))
        mask = args[4] if len(args) > 4 else kwargs.get("mask")
        apart = bool(kwargs.get("skip_reshape", False))  # (B, N, L, K) rather than (B, L, N * K)
        tiling = self._place(q, k, apart, mask, options)
        if tiling is None:
            return self._plain(func, *args, **kwargs)
        if not apart:
            q, k, v = (rearrange(x, "b l (n k) -> b n l k", n=heads) for x in (q, k, v))
        out = self._sparse(q, k, v, tiling)
        if kwargs.get("skip_output_reshape", False):
            return out
        return rearrange(out, "b n l k -> b l (n k)")

    def _plain(self, func: Override, *args: Any, **kwargs: Any) -> Tensor:
        return func(*args, **kwargs) if self.before is None else self.before(func, *args, **kwargs)

    def _place(
        self, q: Tensor, k: Tensor, apart: bool, mask: Tensor | None, options: Mapping[str, Any]
    ) -> Tiling | None:
        """How the visual tokens of a call divide into tiles; None if it is to run as it did."""
        grid: tuple[int, int, int] | None = options.get(GRID)
        axis = 2 if apart else 1
        length = q.shape[axis]
        if grid is None or k.shape[axis] != length:  # attention to text
            return None
        visual = math.prod(grid)
        if not visual <= length <= visual + MOST_TEXT:
            # refiners of text are shorter; longer ones hold reference frames or the like
            if length > visual:
                self._say(f"{length} tokens are not the {visual} of the latent {grid}")
            return None
        if mask is not None:
            self._say("its text is masked")
            return None
        try:
            return Tiling.of(grid, self._nabla.tile_thw)
        except ValueError as error:
            self._say(str(error))
            return None

    def _sparse(self, q: Tensor, k: Tensor, v: Tensor, tiling: Tiling) -> Tensor:
        """Attention of (B, N, L, K), visual tokens first in raster order, text behind them."""
        visual = math.prod(tiling.grid_thw) * math.prod(tiling.tile_thw)
        head_count = q.shape[1]

        def tiled(x: Tensor) -> Tensor:
            flat = rearrange(x[:, :, :visual], "b n s k -> (b n) s k")
            return rearrange(tiling.tile(flat), "(b n) s k -> b n s k", n=head_count)

        q_visual, k_visual, v_visual = (tiled(x).contiguous() for x in (q, k, v))
        window = None
        if self._nabla.sta_window_thw is not None:
            window = sliding_window(tiling.grid_thw, self._nabla.sta_window_thw, q.device)
        block_map = self._nabla.choose(q_visual, k_visual, tiling, window)
        keys, values = k_visual, v_visual
        if k.shape[2] > visual:
            keys = torch.cat([k_visual, k[:, :, visual:]], dim=2)
            values = torch.cat([v_visual, v[:, :, visual:]], dim=2)
        out = self._attend(q_visual, keys, values, block_map=block_map)
        flat = tiling.untile(rearrange(out, "b n s k -> (b n) s k"))
        out = rearrange(flat, "(b n) s k -> b n s k", n=head_count)
        if q.shape[2] > visual:
            out = torch.cat([out, self._attend(q[:, :, visual:], k, v)], dim=2)
        return out

    def _say(self, why: str) -> None:
        if why not in self._said:
            self._said.add(why)
            logging.info("NABLA (Kandinsky 5): attention runs dense: %s.", why.rstrip("."))


def _token_grid(x: Tensor, patch_thw: tuple[int, ...]) -> tuple[int, int, int] | None:
    """Tokens (t, h, w) of latents (B, C, T, H, W), padded to whole patches; None for images."""
    if x.ndim != 5:
        return None
    t, h, w = (-(-size // patch) for size, patch in zip(x.shape[2:], patch_thw, strict=True))
    return t, h, w
