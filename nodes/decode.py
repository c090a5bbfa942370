"""Decode: latents to frames, a few at a time."""

from __future__ import annotations

from typing import Any

import torch
from comfy_api.latest import io

from . import host
from .convert import pixels_to_image


class Decode(io.ComfyNode):
    """Latents to frames within a memory budget."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="K5_Decode",
            display_name="Decode (Kandinsky 5)",
            category="Kandinsky 5",
            description=(
                "Decodes a latent a few frames at a time, so that memory does not grow with the "
                "length of the video. Tiles are chosen by what is free, or by a budget."
            ),
            inputs=[
                io.Vae.Input(
                    "vae",
                    tooltip=(
                        "From Load VAE (Kandinsky 5). Another one, e.g. of Load VAE, decodes as in "
                        "VAE Decode."
                    ),
                ),
                io.Latent.Input("latent", tooltip="A sampled latent."),
                io.Float.Input(
                    "memory_budget_gb",
                    default=0.0,
                    min=0.0,
                    max=1024.0,
                    step=0.5,
                    tooltip=(
                        "Memory that the decode may use beside weights and result; 0 uses what "
                        "is free. Less means smaller tiles."
                    ),
                ),
            ],
            outputs=[io.Image.Output(tooltip="Frames, for Create Video or Save Image.")],
        )

    @classmethod
    def execute(cls, vae: Any, latent: dict[str, Any], memory_budget_gb: float) -> io.NodeOutput:
        chunks = host.decode_frames(vae, latent, memory_budget_gb)
        return io.NodeOutput(torch.cat([pixels_to_image(chunk) for chunk in chunks]))
