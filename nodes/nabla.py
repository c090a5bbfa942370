"""NABLA: sparse attention for long and large videos."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io

from ..kandinsky_core.attention import BACKENDS, load_backend
from ..kandinsky_core.family import Attention
from . import host

CATEGORY = "Kandinsky 5/acceleration"
FROM_CHECKPOINT = "from checkpoint"

MODES: dict[str, Attention | None] = {"auto from checkpoint": None, "on": "nabla", "off": "dense"}
"""Choice of the node -> attention; None is what the checkpoint was trained with."""
TILES: dict[str, tuple[int, int, int] | None] = {
    FROM_CHECKPOINT: None,
    "1x8x8": (1, 8, 8),
    "1x4x4": (1, 4, 4),
    "1x2x2": (1, 2, 2),
}
"""Choice of the node -> tokens per tile (t, h, w)."""


def _window_input(axis: str, default: int) -> io.Input:
    return io.Int.Input(
        f"window_{axis}",
        default=default,
        min=1,
        max=255,
        tooltip=f"Tiles of the window along {axis}; an even one counts as one more. For mode on.",
    )


class SparseAttention(io.ComfyNode):
    """NABLA."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="K5_Nabla",
            display_name="NABLA (Kandinsky 5)",
            category=CATEGORY,
            description=(
                "Sparse attention for long and large videos: each block of tokens attends to the "
                "blocks that matter. Checkpoints trained with it use it without this node."
            ),
            inputs=[
                io.Model.Input(
                    "model",
                    tooltip=(
                        "From Load Model (Kandinsky 5). Experimental, with mode on: native "
                        "Kandinsky 5, Wan and HunyuanVideo, which were not trained with NABLA."
                    ),
                ),
                io.Combo.Input(
                    "mode",
                    options=list(MODES),
                    tooltip=(
                        "auto: as the checkpoint was trained at this size, with its P, window and "
                        "tile. on: with the numbers below. off: dense attention."
                    ),
                ),
                io.Float.Input(
                    "cdf_threshold",
                    default=0.9,
                    min=0.0,
                    max=1.0,
                    step=0.01,
                    tooltip=(
                        "P: share of the attention that the kept blocks cover. Lower is sparser "
                        "and faster, 1 is dense. For mode on."
                    ),
                ),
                io.Boolean.Input(
                    "window",
                    default=True,
                    tooltip=(
                        "Always keep the blocks around each block, which hides the borders of "
                        "tiles. For mode on."
                    ),
                ),
                _window_input("t", 11),
                _window_input("h", 3),
                _window_input("w", 3),
                io.Int.Input(
                    "min_blocks",
                    default=0,
                    min=0,
                    max=4096,
                    tooltip="Blocks that every block attends to at least; 0 leaves it to P.",
                ),
                io.Float.Input(
                    "dense_above",
                    default=1.0,
                    min=0.0,
                    max=1.0,
                    step=0.01,
                    tooltip=(
                        "Attention heads that would keep more than this share of blocks attend to "
                        "everything instead; 1 never does that."
                    ),
                ),
                io.Combo.Input(
                    "tile",
                    options=list(TILES),
                    tooltip=(
                        "Tokens of a block, time x height x width; a token is 16 x 16 pixels. "
                        "Checkpoints were trained with 1x8x8; for other models the first choice "
                        "takes the nearest that divides the size. For mode on."
                    ),
                ),
                io.Combo.Input(
                    "backend",
                    options=list(BACKENDS),
                    tooltip=(
                        "What computes attention, text included. auto chooses by device and "
                        "density; sage is an approximation."
                    ),
                ),
            ],
            outputs=[io.Model.Output(tooltip="The model with this attention.")],
        )

    @classmethod
    def execute(
        cls,
        model: Any,
        mode: str,
        cdf_threshold: float,
        window: bool,
        window_t: int,
        window_h: int,
        window_w: int,
        min_blocks: int,
        dense_above: float,
        tile: str,
        backend: str,
    ) -> io.NodeOutput:
        changes: dict[str, Any] = {
            "min_blocks": min_blocks,
            "dense_above": None if dense_above == 1 else dense_above,
        }
        attention = MODES[mode]
        if attention == "nabla":
            changes["cdf_threshold"] = cdf_threshold
            changes["sta_window_thw"] = (window_t, window_h, window_w) if window else None
            tile_thw = TILES[tile]
            if tile_thw is not None:
                changes["tile_thw"] = tile_thw
        choice = host.AttentionChoice(attention, changes, load_backend(backend))
        if not host.is_kandinsky(model):
            return io.NodeOutput(_foreign(model, mode, choice))
        settings = host.settings_for(model, None)
        choice.nabla(settings)  # refuses numbers out of their range here and not while sampling
        return io.NodeOutput(host.with_attention(model, choice))


def _foreign(model: Any, mode: str, choice: host.AttentionChoice) -> Any:
    """Return a MODEL of the host's own with the numbers of the node, or as it was before such a
    node."""
    if choice.attention is None:
        raise ValueError(
            f"mode: {mode} reads the settings of a checkpoint from Load Model (Kandinsky 5), this "
            "model is another; choose on, with the numbers below, or off."
        )
    if choice.attention == "dense":
        return host.without_foreign_nabla(model)
    return host.with_foreign_nabla(model, choice)
