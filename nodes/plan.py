"""What a job will need in memory, said before it is queued in earnest."""

from __future__ import annotations

import logging
from typing import Any

from comfy_api.latest import io, ui

from ..kandinsky_core.family import Typed
from ..kandinsky_core.planning import GIB, describe, fits, smaller_sizes, verdict
from . import host
from .latents import empty_latent, size_inputs
from .sampler_inputs import cfg_input


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
                    tooltip="Whether a negative prompt is run too, where cfg is not 1.",
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
                cfg_input(
                    "At 1 no negative prompt is run; 0 takes the checkpoint's.", optional=True
                ),
                io.Float.Input(
                    "main_memory_gb",
                    default=0.0,
                    min=0.0,
                    max=4096.0,
                    step=0.5,
                    optional=True,
                    tooltip=(
                        "GiB of main memory for weights that wait beside the device; 0 takes what "
                        "is free."
                    ),
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
        cfg: float = 0.0,
        main_memory_gb: float = 0.0,
    ) -> io.NodeOutput:
        info = host.model_info(model)
        typed = Typed(height=height, width=width, num_frames=length, guidance_scale=cfg or None)
        settled = host.settle(model, typed, latent=latent)
        settings = settled.settings
        if latent is None:
            made = settled.shape
            channels = info.config.latent_channels
            latent = empty_latent(made.width, made.height, made.num_frames, 1, channels)
        guided = guidance and settings.guidance_scale != 1
        job = host.make_job(model, latent, settings, clip=clip, vae=vae, guided=guided)
        memory = int(memory_gb * GIB) or host.free_memory(model)
        main = int(main_memory_gb * GIB) or host.free_main_memory(model, clip, vae)
        sizes = smaller_sizes(job, settled.trained)
        report, fit = describe(job, memory, sizes, main), fits(job, memory, main)
        if not fit:
            logging.warning("Kandinsky 5: this job %s", verdict(job, memory, sizes, main))
        return io.NodeOutput(report, fit, ui=ui.PreviewText(report))
