"""What a job will need in memory, said before it is queued in earnest."""

from __future__ import annotations

import logging
from typing import Any

from comfy_api.latest import io, ui

from ..kandinsky_core.plan import GIB, best_plan
from ..kandinsky_core.plan_jobs import smaller_sizes
from ..kandinsky_core.plan_report import describe, verdict
from . import host
from .latents import empty_latent, size_inputs


class PlanMemory(io.ComfyNode):
    """Whether a job fits, and what bounds it."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="K5_PlanMemory",
            display_name="Plan Memory (Kandinsky 5)",
            category="Kandinsky 5",
            description=(
                "Says what a job will need in memory, stage by stage, and whether it fits, from a "
                "count of weights and tensors. Nothing is sampled."
            ),
            inputs=[
                io.Model.Input("model", tooltip="The model that will sample, with its patches."),
                *size_inputs(),
                io.Boolean.Input(
                    "guidance",
                    default=True,
                    tooltip="Whether cfg is above 1, so that a negative prompt is run too.",
                ),
                io.Float.Input(
                    "memory_gb",
                    default=0.0,
                    min=0.0,
                    max=1024.0,
                    step=0.5,
                    tooltip=(
                        "GiB to plan with; 0 takes what is free on the device, and what ComfyUI "
                        "can free by unloading models."
                    ),
                ),
                io.Latent.Input(
                    "latent",
                    optional=True,
                    tooltip="What will be sampled; instead of width, height and length.",
                ),
                io.Clip.Input(
                    "clip",
                    optional=True,
                    tooltip="For the size of its weights; without it Qwen2.5-VL in bf16 is taken.",
                ),
                io.Vae.Input(
                    "vae",
                    optional=True,
                    tooltip="For its dtype; without it the model's usual one is taken.",
                ),
            ],
            outputs=[
                io.String.Output("report", display_name="report"),
                io.Boolean.Output("fits", display_name="fits"),
            ],
            is_output_node=True,
        )

    @classmethod
    def execute(
        cls,
        model: Any,
        width: int,
        height: int,
        length: int,
        guidance: bool,
        memory_gb: float,
        latent: dict[str, Any] | None = None,
        clip: Any = None,
        vae: Any = None,
    ) -> io.NodeOutput:
        info = host.model_info(model)
        if latent is None:
            if host.makes_images_only(model):
                length = 1
            latent = empty_latent(width, height, length, 1, info.config.latent_channels)
        job = host.make_job(model, latent, clip=clip, vae=vae, guided=guidance)
        memory = int(memory_gb * GIB) or host.free_memory(model)
        sizes = smaller_sizes(job, host.settings_for(model, latent))
        report = describe(job, memory, sizes)
        fits = best_plan(job, memory) is not None
        if not fits:
            logging.warning("Kandinsky 5: this job %s", verdict(job, memory, sizes))
        return io.NodeOutput(report, fits, ui=ui.PreviewText(report))
