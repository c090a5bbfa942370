"""Pictures of what NABLA decided during a run."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from comfy_api.latest import io

from ..kandinsky_core.attention import BlockMap, MapReport
from . import host
from .convert import frames_to_image, pixels_to_image
from .draw import draw_attended, draw_block_map, draw_shares
from .sampler_inputs import cfg_input, seed_input, steps_input
from .sampling import make_sigmas

CATEGORY = "Kandinsky 5/acceleration"
POSITIVE = 0
"""The host's number of the positive prompt in cond_or_uncond."""


class Recorder:
    """Notes the maps of the positive prompt in a run: every density, and one map whole."""

    def __init__(self, sigmas: list[float], layer: int, step: int) -> None:
        self.density: dict[tuple[int, int], np.ndarray] = {}
        """(layer, step) -> share of blocks that each head keeps (N,), mean over the batch."""
        self.chosen: BlockMap | None = None
        """Map of the chosen layer and step."""
        self._sigmas = np.array(sigmas[:-1])
        self._wanted = layer, step

    def __call__(self, options: Mapping[str, Any], report: MapReport) -> None:
        numbers: list[int] = options["cond_or_uncond"]
        if POSITIVE not in numbers:
            return
        part = numbers.index(POSITIVE)
        step = int(np.abs(self._sigmas - float(options["sigmas"].flatten()[0])).argmin())
        block_map = report.block_map
        share = len(block_map.kept) // len(numbers)
        rows = slice(part * share, (part + 1) * share)
        density = block_map.density[rows]  # (B, N), with dense heads as they ran
        self.density[report.layer, step] = density.mean(0).cpu().numpy()
        if (report.layer, step) == self._wanted:
            kept = block_map.kept[rows].cpu()
            self.chosen = BlockMap(kept, block_map.tile_thw, block_map.grid_thw)

    def table(self) -> np.ndarray:
        """Return densities (layers, steps), mean over heads; NaN where the blocks did not run."""
        layers = 1 + max(layer for layer, _ in self.density)
        table = np.full((layers, len(self._sigmas)), np.nan)
        for place, density in self.density.items():
            table[place] = density.mean()
        return table


class NablaInspector(io.ComfyNode):
    """What NABLA decided."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="K5_NablaInspector",
            display_name="NABLA Inspector (Kandinsky 5)",
            category=CATEGORY,
            description=(
                "Samples once and draws which share of blocks NABLA kept, per layer and step, and "
                "the block map of one head, and on the picture what one tile looks at. Of the "
                "positive prompt."
            ),
            inputs=[
                io.Model.Input(
                    "model",
                    tooltip=(
                        "A model that runs with NABLA at this size. Experimental: other models "
                        "behind NABLA (Kandinsky 5), with steps and cfg given."
                    ),
                ),
                io.Conditioning.Input("positive", tooltip="What to make."),
                io.Conditioning.Input("negative", tooltip="What to guide away from."),
                io.Latent.Input("latent", tooltip="What to sample."),
                seed_input("Of the noise."),
                steps_input(),
                io.Int.Input(
                    "layer", default=0, min=0, max=255, tooltip="Block of the map, from 0."
                ),
                io.Int.Input(
                    "head", default=0, min=0, max=255, tooltip="Attention head of the map, from 0."
                ),
                io.Int.Input("step", default=0, min=0, max=999, tooltip="Step of the map, from 0."),
                io.Vae.Input(
                    "vae",
                    optional=True,
                    tooltip="Decodes what was made, to draw on it; without one it is grey.",
                ),
                io.Int.Input(
                    "tile",
                    default=-1,
                    min=-1,
                    max=999999,
                    optional=True,
                    tooltip=(
                        "Tile whose choice is drawn on the picture, counted from 0 by time, row "
                        "and column; -1 is the one in the middle."
                    ),
                ),
                cfg_input(
                    "Guidance: 1 is none; 0 uses what the checkpoint was made for.", optional=True
                ),
            ],
            outputs=[
                io.Image.Output("density", display_name="density"),
                io.Image.Output("block_map", display_name="block map"),
                io.Latent.Output("latent_out", display_name="latent"),
                io.Image.Output("attended", display_name="attended tiles"),
            ],
        )

    @classmethod
    def execute(
        cls,
        model: Any,
        positive: Any,
        negative: Any,
        latent: dict[str, Any],
        seed: int,
        steps: int,
        layer: int,
        head: int,
        step: int,
        vae: Any = None,
        tile: int = -1,
        cfg: float = 0.0,
    ) -> io.NodeOutput:
        sigmas, cfg = _run_settings(model, steps, cfg, latent)
        if step >= len(sigmas) - 1:
            raise ValueError(
                f"step: the run has {len(sigmas) - 1} steps, found {step}; give 0 to "
                f"{len(sigmas) - 2}."
            )
        recorder = Recorder(sigmas.tolist(), layer, step)
        sampled = host.sample_latents(
            host.with_watch(model, recorder),
            latent,
            sigmas,
            positive=positive,
            negative=negative,
            cfg=cfg,
            seed=seed,
        )
        if not recorder.density:
            raise ValueError(
                "model: it attends densely at this size, so there are no maps; put NABLA "
                "(Kandinsky 5) with mode on before this node, or see in the log what kept it off."
            )
        table = recorder.table()
        heads = len(next(iter(recorder.density.values())))
        if recorder.chosen is None or head >= heads:
            raise ValueError(
                f"layer, head, step: no map of layer {layer}, head {head}, step {step}; the model "
                f"has {len(table)} layers and {heads} heads, and a cache may have skipped the step."
            )
        t, h, w = grid = recorder.chosen.grid_thw
        kept = recorder.chosen.kept[0, head].numpy()
        if tile >= len(kept):
            raise ValueError(
                f"tile: there are {t} x {h} x {w} tiles, found number {tile}; give -1 to "
                f"{len(kept) - 1}."
            )
        number = tile if tile >= 0 else int(np.ravel_multi_index((t // 2, h // 2, w // 2), grid))
        density = draw_shares(
            table, f"density of NABLA, {np.nanmean(table):.1%} on average", "step", "layer"
        )
        block_map = draw_block_map(
            kept,
            h * w,
            f"layer {layer}, head {head}, step {step}: {kept.mean():.1%} of "
            f"{t} x {h} x {w} tiles squared",
        )
        place = tuple(int(index) for index in np.unravel_index(number, grid))
        pictures = _pictures(sampled, vae, host.is_kandinsky(model))
        attended = draw_attended(pictures, kept[number].reshape(grid), place)
        return io.NodeOutput(
            frames_to_image(density),
            frames_to_image(block_map),
            sampled,
            frames_to_image(*attended),
        )


def _run_settings(
    model: Any, steps: int, cfg: float, latent: dict[str, Any]
) -> tuple[torch.Tensor, float]:
    """Return times and guidance scale: given, or the checkpoint's if the MODEL has one."""
    if host.is_kandinsky(model):
        sigmas = make_sigmas(model, steps, 0.0, 1.0, latent)
        return sigmas, cfg or host.settings_for(model, latent).guidance_scale
    if not (steps and cfg):
        raise ValueError(
            f"steps, cfg: 0 reads the settings of a checkpoint from Load Model (Kandinsky 5), this "
            f"model is another; found steps {steps} and cfg {cfg:g}, give both."
        )
    return host.native_sigmas(model, steps), cfg


def _pictures(latent: dict[str, Any], vae: Any, ours: bool) -> np.ndarray:
    """Return a picture for each latent frame of the first clip, uint8 (T, H, W, 3); grey without a
    VAE."""
    samples = latent["samples"][:1]
    count = samples.shape[2] if samples.ndim == 5 else 1
    if vae is None:
        return np.full((count, *host.pixel_size(samples), 3), 160, np.uint8)
    if ours:
        stream = host.decode_frames(vae, {**latent, "samples": samples}, 0.0)
        image = pixels_to_image(stream.chunks, stream.num_frames)
    else:
        image = vae.decode(samples).flatten(0, -4)  # (1, F, H, W, 3) or (F, H, W, 3)
    frames = (image * 255).round().to(torch.uint8).cpu().numpy()
    return frames[np.linspace(0, len(frames) - 1, count).round().astype(int)]
