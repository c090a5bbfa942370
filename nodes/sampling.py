"""The schedule of times, and the Euler sampler."""

from __future__ import annotations

from typing import Any

import torch
from comfy_api.latest import io

from ..kandinsky_core.family import pixel_shape
from ..kandinsky_core.flow import timesteps
from . import host
from .sampler_inputs import cfg_input, seed_input, shift_input, steps_input

CATEGORY = "Kandinsky 5"


def schedule_inputs() -> list[io.Input]:
    """Make `steps`, `shift` and `denoise`; 0 asks the checkpoint."""
    return [
        steps_input("Sampling steps; 0 uses the number the checkpoint was made for."),
        shift_input(
            "How much of the steps goes to the noisy part; higher gives more to motion and "
            "layout. 0 uses the checkpoint's, or what ModelSamplingSD3 set on the model."
        ),
        io.Float.Input(
            "denoise",
            default=1.0,
            min=0.0,
            max=1.0,
            step=0.01,
            tooltip=(
                "Below 1 starts from the given latent instead of pure noise, as in KSampler: "
                "lower keeps more of it."
            ),
        ),
    ]


def make_sigmas(
    model: Any, steps: int, shift: float, denoise: float, latent: dict[str, Any] | None
) -> torch.Tensor:
    """Return the core's times, cut to the last `steps` for a denoise below 1 as ComfyUI does."""
    if denoise <= 0.0:
        return torch.empty(0)
    steps = steps or host.settings_for(model, latent).num_steps
    total = steps if denoise > 0.9999 else int(steps / denoise)
    return timesteps(total, resolve_shift(model, shift, latent))[-(steps + 1) :]


def resolve_shift(model: Any, shift: float, latent: dict[str, Any] | None) -> float:
    """Return what is typed, else what a node put on the model, else the checkpoint's."""
    patched = host.sampling_shift(model)  # refuses what no shift can replace
    return shift or patched or host.settings_for(model, latent).shift


class Schedule(io.ComfyNode):
    """The times of a run."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="K5_Schedule",
            display_name="Schedule (Kandinsky 5)",
            category=CATEGORY,
            description=(
                "The sigmas of the reference, for SamplerCustom or Sampler (Kandinsky 5). With "
                "the euler sampler this is what the model was trained to follow."
            ),
            inputs=[
                io.Model.Input("model", tooltip="Its checkpoint gives steps and shift."),
                *schedule_inputs(),
                io.Latent.Input(
                    "latent",
                    optional=True,
                    tooltip="What will be sampled: some checkpoints change the shift with size.",
                ),
            ],
            outputs=[io.Sigmas.Output(tooltip="From 1 (noise) to 0.")],
        )

    @classmethod
    def execute(
        cls,
        model: Any,
        steps: int,
        shift: float,
        denoise: float,
        latent: dict[str, Any] | None = None,
    ) -> io.NodeOutput:
        return io.NodeOutput(make_sigmas(model, steps, shift, denoise, latent))


class Sampler(io.ComfyNode):
    """The reference's sampler."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="K5_Sampler",
            display_name="Sampler (Kandinsky 5)",
            category=CATEGORY,
            description=(
                "Samples with the settings of the checkpoint and plain Euler steps. KSampler with "
                "euler and simple gives the same latents. The prompt and the values used go into "
                "the metadata of the saved file."
            ),
            inputs=[
                io.Model.Input("model", tooltip="The model, with or without LoRA and patches."),
                io.Conditioning.Input("positive", tooltip="What to make."),
                io.Conditioning.Input("negative", tooltip="What to guide away from."),
                io.Latent.Input("latent", tooltip="From Empty Latent or Image to Video."),
                seed_input("Of the noise; the same seed gives the same result.", changes=True),
                cfg_input(
                    "Guidance: 1 is none and twice as fast; 0 uses what the checkpoint was "
                    "made for."
                ),
                *schedule_inputs(),
                io.Sigmas.Input(
                    "sigmas",
                    optional=True,
                    tooltip="Times to use instead of steps, shift and denoise.",
                ),
                io.Boolean.Input(
                    "unguided_last_step",
                    default=False,
                    optional=True,
                    tooltip=(
                        "Leave guidance out of the last step: less residual noise with some "
                        "checkpoints, and a little faster."
                    ),
                ),
            ],
            outputs=[io.Latent.Output("latent_out", display_name="latent")],
            hidden=[io.Hidden.extra_pnginfo],
        )

    @classmethod
    def execute(
        cls,
        model: Any,
        positive: Any,
        negative: Any,
        latent: dict[str, Any],
        seed: int,
        cfg: float,
        steps: int,
        shift: float,
        denoise: float,
        sigmas: torch.Tensor | None = None,
        unguided_last_step: bool = False,
    ) -> io.NodeOutput:
        cfg = cfg or host.settings_for(model, latent).guidance_scale
        used: dict[str, Any] = {}
        if sigmas is None:
            sigmas = make_sigmas(model, steps, shift, denoise, latent)
            used = {"shift": resolve_shift(model, shift, latent), "denoise": denoise}
        sampled = host.sample_latents(
            model,
            latent,
            sigmas,
            positive=positive,
            negative=negative,
            cfg=cfg,
            seed=seed,
            unguided_last_step=unguided_last_step,
        )
        samples = sampled["samples"]
        made = pixel_shape((samples.shape[2] if samples.ndim == 5 else 1, *samples.shape[-2:]))
        host.record(
            cls.hidden,
            "K5_Sampler",
            {
                "prompt": host.prompt_of(positive),
                "negative_prompt": host.prompt_of(negative),
                "checkpoint": host.model_info(model).path.name,
                "seed": seed,
                "steps": max(len(sigmas) - 1, 0),
                "cfg": cfg,
                **used,
                "width": made.width,
                "height": made.height,
                "length": made.num_frames,
            },
        )
        return io.NodeOutput(sampled)
