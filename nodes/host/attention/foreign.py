"""NABLA on video transformers that this pack did not build: native Kandinsky 5, Wan, HunyuanVideo.

Our own network puts tokens into tile order once; others know nothing of tiles, so queries, keys and
values are put into it in each attention call, through the host's attention override, and the
result back. Each call of the network notes what its visual self-attention must look like
(`foreign_place`); an attention of exactly that many tokens is made sparse, everything else runs as
it did, and one line of the log says so. An override that was there before keeps its calls.

Letters: B batch, N heads, S visual tokens, L all tokens, K head dim.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import comfy.patcher_extension
import torch
from comfy.model_patcher import ModelPatcher
from einops import rearrange
from torch import Tensor

from ....kandinsky_core.attention import Nabla, Tiling, sliding_window
from .choice import OVERRIDE, WATCH, AttentionChoice, Override
from .foreign_place import Place, divide, find_place

PASS = "k5_nabla_pass"
"""Key of transformer_options: the `Pass` of this call of the network."""
KEY = "k5_nabla"
"""Name under which the wrapper is kept on a MODEL."""


def with_foreign_nabla(model: ModelPatcher, choice: AttentionChoice) -> ModelPatcher:
    """Copy a MODEL of another class so that its visual self-attention is sparse.

    Args:
        model: A video transformer with a `patch_size`.
        choice: With attention "nabla"; there is no checkpoint to take other numbers from. Without
            a tile among its changes one is chosen that divides the size.

    Returns:
        The copy.

    Raises:
        ValueError: The MODEL has no tokens on a grid of time, height and width.
    """
    network = getattr(model.model, "diffusion_model", None)
    patch = getattr(network, "patch_size", None)
    if not isinstance(patch, tuple | list) or len(patch) != 3:
        raise ValueError(
            f"model: {type(model.model).__name__} has no patches of time, height and width, which "
            "NABLA's tiles are made of; give a video transformer such as Kandinsky 5 or Wan."
        )
    patched = without_foreign_nabla(model)  # another NABLA node: this one takes its place
    options = patched.model_options.setdefault("transformer_options", {})
    override = SparseOverride(choice, tuple(int(side) for side in patch), options.get(OVERRIDE))
    options[OVERRIDE] = override

    def note_pass(executor: Callable[..., Tensor], x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        # x, t, c_concat, c_crossattn, control, transformer_options: the host's own order
        *others, options = args
        noted = override.begin(network, x, others[2], kwargs)
        return executor(x, *others, {**options, PASS: noted}, **kwargs)

    patched.add_wrapper_with_key(comfy.patcher_extension.WrappersMP.APPLY_MODEL, KEY, note_pass)
    return patched


def without_foreign_nabla(model: ModelPatcher) -> ModelPatcher:
    """Copy a MODEL of another class so that it attends as it did before `with_foreign_nabla`."""
    patched = model.clone()
    # without its wrapper an override that others were put around is idle, too
    patched.remove_wrappers_with_key(comfy.patcher_extension.WrappersMP.APPLY_MODEL, KEY)
    options = patched.model_options.get("transformer_options", {})
    override = options.get(OVERRIDE)
    if isinstance(override, SparseOverride):
        del options[OVERRIDE]
        if override.before is not None:
            options[OVERRIDE] = override.before
    return patched


@dataclass
class Pass:
    """One call of the network."""

    owner: SparseOverride
    """The override that noted it."""
    place: Place | None = None
    """Where its visual tokens are; None if that cannot be told."""
    tiling: Tiling | None = None
    """How they divide; None if they do not."""
    window: Tensor | None = None
    """Boolean (Q, Q): blocks that are always kept."""
    layers: int = 0
    """Sparse attentions so far."""


class SparseOverride:
    """What the host calls in place of its attention."""

    def __init__(
        self, choice: AttentionChoice, patch_thw: tuple[int, ...], before: Override | None
    ) -> None:
        self.before = before
        self._nabla = Nabla(**choice.changes)
        self._tile_thw = choice.changes.get("tile_thw")
        self._attend = choice.attend
        self._patch_thw = patch_thw
        self._said: set[str] = set()

    def __deepcopy__(self, _memo: Any) -> SparseOverride:
        """Return the host copies the options of every copy of a MODEL; all are to know what was
        said."""
        return self

    def begin(
        self, network: Any, latents: Tensor, text: Tensor | None, extra: Mapping[str, Any]
    ) -> Pass:
        """Note what the attentions of a call of the network will look like."""
        noted = Pass(self)
        try:
            noted.place = find_place(network, self._patch_thw, latents, text, extra)
            noted.tiling = divide(noted.place, self._patch_thw, self._tile_thw)
        except ValueError as error:
            self._say_dense(str(error))
            return noted
        t, h, w = tile_thw = noted.tiling.tile_thw
        if self._tile_thw is None and tile_thw != Nabla().tile_thw:
            self._say(f"tiles of {t}x{h}x{w} tokens, which divide its {noted.place.grid_thw}")
        if self._nabla.sta_window_thw is not None:
            grid_thw = noted.tiling.grid_thw
            noted.window = sliding_window(grid_thw, self._nabla.sta_window_thw, latents.device)
        return noted

    def __call__(self, func: Override, *args: Any, **kwargs: Any) -> Tensor:
        """Answer one call of `func(q, k, v, heads, mask=..., skip_reshape=..., ...)`."""
        options = kwargs.get("transformer_options") or {}
        q, k, v, heads = args[:4] if len(args) >= 4 else (*args[:3], kwargs.get("heads"))
        mask = args[4] if len(args) > 4 else kwargs.get("mask")
        apart = bool(kwargs.get("skip_reshape", False))  # (B, N, L, K) rather than (B, L, N * K)
        axis = 2 if apart else 1
        noted: Pass | None = options.get(PASS)
        if noted is None or not self._fits(noted, q.shape[axis], k.shape[axis], mask):
            return self._plain(func, *args, **kwargs)
        if not apart:
            q, k, v = (rearrange(x, "b l (n k) -> b n l k", n=heads) for x in (q, k, v))
        out = self._sparse(q, k, v, noted, options)
        if kwargs.get("skip_output_reshape", False):
            return out
        return rearrange(out, "b n l k -> b l (n k)")

    def _plain(self, func: Override, *args: Any, **kwargs: Any) -> Tensor:
        return func(*args, **kwargs) if self.before is None else self.before(func, *args, **kwargs)

    def _fits(self, noted: Pass, queries: int, keys: int, mask: Tensor | None) -> bool:
        """Return whether an attention is the visual self-attention of a call; says why if it may
        be."""
        place = noted.place
        if noted.owner is not self or place is None or noted.tiling is None or queries != keys:
            return False
        if queries != place.length:
            if queries not in place.texts:
                self._say_dense(
                    f"its {queries} tokens are not the {place.length} that the latent and its "
                    "text give; others, such as reference frames, may stand among them"
                )
            return False
        if queries in place.texts:
            self._say_dense(f"text and video have {queries} tokens each and look alike")
            return False
        if mask is not None:
            self._say_dense("its text is masked")
            return False
        return True

    def _sparse(
        self, q: Tensor, k: Tensor, v: Tensor, noted: Pass, options: Mapping[str, Any]
    ) -> Tensor:
        """Return the attention of (B, N, L, K), its visual tokens in raster order."""
        place, tiling, nabla = noted.place, noted.tiling, self._nabla
        assert place is not None and tiling is not None
        heads = q.shape[1]

        def tiled(x: Tensor) -> Tensor:
            flat = tiling.tile(rearrange(x, "b n s k -> (b n) s k"))
            return rearrange(flat, "(b n) s k -> b n s k", n=heads).contiguous()

        (q_visual, q_text), (k_visual, k_text), (v_visual, v_text) = map(place.split, (q, k, v))
        q_visual, k_visual, v_visual = (tiled(x) for x in (q_visual, k_visual, v_visual))
        if options.get(WATCH) is not None:
            nabla = replace(nabla, observe=partial(options[WATCH], options))
        block_map = nabla.choose(q_visual, k_visual, tiling, noted.window, noted.layers)
        noted.layers += 1
        keys, values = k_visual, v_visual
        if place.joint_text:  # a map's blocks come first, whatever follows is seen by all
            keys, values = torch.cat([keys, k_text], 2), torch.cat([values, v_text], 2)
        out = self._attend(q_visual, keys, values, block_map=block_map)
        flat = tiling.untile(rearrange(out, "b n s k -> (b n) s k"))
        out = rearrange(flat, "(b n) s k -> b n s k", n=heads)
        return place.join(out, self._attend(q_text, k, v)) if place.joint_text else out

    def _say_dense(self, why: str) -> None:
        self._say(f"attention runs dense: {why.rstrip('.')}")

    def _say(self, what: str) -> None:
        if what not in self._said:
            self._said.add(what)
            logging.info("NABLA (Kandinsky 5): %s.", what)
