"""Settings of a checkpoint, with what a creator types in place of them."""

from __future__ import annotations

from typing import Any, get_args

from comfy_api.latest import io

from ..kandinsky_core.checkpoint import CheckpointInfo
from ..kandinsky_core.family import Attention, Orientation, SizeClass, Typed
from . import host
from .latents import MAX_FRAMES, MAX_SIDE
from .sampler_inputs import cfg_input, shift_input, steps_input

ATTENTION: dict[str, Attention | None] = {"auto": None, "dense": "dense", "nabla": "nabla"}
"""Choice of the node -> attention; None is the model's."""


def _override_inputs() -> list[io.Input]:
    """Make what may be typed in place of the checkpoint's; 0 and auto ask the checkpoint."""
    return [
        io.Combo.Input(
            "size_class",
            options=list(get_args(SizeClass)),
            default="auto",
            optional=True,
            tooltip=(
                "Sizes a checkpoint was trained at: small is 512 (nano 128), large is 1024 on Pro "
                "(nano 256). auto goes by width and height, and is small without them."
            ),
        ),
        io.Int.Input(
            "width",
            default=0,
            min=0,
            max=MAX_SIDE,
            step=16,
            optional=True,
            tooltip="Pixels, a multiple of 16; 0 takes the checkpoint's. Needs height too.",
        ),
        io.Int.Input(
            "height",
            default=0,
            min=0,
            max=MAX_SIDE,
            step=16,
            optional=True,
            tooltip="Pixels, a multiple of 16; 0 takes the checkpoint's. Needs width too.",
        ),
        io.Int.Input(
            "length",
            default=0,
            min=0,
            max=MAX_FRAMES,
            optional=True,
            tooltip="Frames, one more than a multiple of 4; 0 takes the checkpoint's.",
        ),
        steps_input("Sampling steps; 0 takes the checkpoint's.", optional=True),
        cfg_input("Guidance, 1 is none; 0 takes the checkpoint's.", optional=True),
        shift_input(
            "Shift of the schedule; 0 takes ModelSamplingSD3's, else the checkpoint's.",
            optional=True,
        ),
        io.Float.Input(
            "rope_scale",
            default=0.0,
            min=0.0,
            max=16.0,
            step=0.01,
            optional=True,
            tooltip=(
                "Divisor of the rotary angles along height and width: 2 at 512, 3.16 at 1024; 0 "
                "takes the checkpoint's."
            ),
        ),
        io.Combo.Input(
            "attention",
            options=list(ATTENTION),
            default="auto",
            optional=True,
            tooltip=(
                "auto takes what NABLA (Kandinsky 5) set, else the checkpoint's; nabla is sparse "
                "and needs sizes that divide into its tiles."
            ),
        ),
        io.Float.Input(
            "cdf_threshold",
            default=0.0,
            min=0.0,
            max=1.0,
            step=0.01,
            optional=True,
            tooltip="NABLA's P: lower is sparser and faster; 0 takes the checkpoint's.",
        ),
        io.Combo.Input(
            "orientation",
            options=list(get_args(Orientation)),
            default="auto",
            optional=True,
            tooltip=(
                "Which of the trained sizes, where width and height are 0; auto takes the first."
            ),
        ),
    ]


class Settings(io.ComfyNode):
    """What a checkpoint was made for, and what is chosen instead."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="K5_Settings",
            display_name="Checkpoint Settings (Kandinsky 5)",
            category="Kandinsky 5",
            description=(
                "The settings a checkpoint was made for, or what you type instead, as numbers for "
                "native nodes and as a model that carries shift, RoPE scale and attention."
            ),
            inputs=[
                io.Model.Input("model", tooltip="From Load Model (Kandinsky 5)."),
                *_override_inputs(),
            ],
            outputs=[
                io.Int.Output("steps_out", display_name="steps", tooltip="For a sampler."),
                io.Float.Output("cfg_out", display_name="cfg", tooltip="For a sampler."),
                io.Float.Output(
                    "shift_out", display_name="shift", tooltip="For ModelSamplingSD3 or Schedule."
                ),
                io.Float.Output("fps", display_name="fps", tooltip="For Create Video."),
                io.Int.Output("width_out", display_name="width", tooltip="For Empty Latent."),
                io.Int.Output("height_out", display_name="height", tooltip="For Empty Latent."),
                io.Int.Output("length_out", display_name="length", tooltip="For Empty Latent."),
                io.Model.Output(
                    "model_out",
                    display_name="model",
                    tooltip="With this shift, RoPE scale and attention, for any sampler.",
                ),
                io.String.Output(
                    "negative_prompt",
                    display_name="negative_prompt",
                    tooltip="What the reference guides away from, for Text Encode.",
                ),
                io.String.Output(
                    "report",
                    display_name="report",
                    tooltip="Where each value comes from, and the sizes and lengths trained at.",
                ),
            ],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def execute(
        cls,
        model: Any,
        size_class: SizeClass = "auto",
        width: int = 0,
        height: int = 0,
        length: int = 0,
        steps: int = 0,
        cfg: float = 0.0,
        shift: float = 0.0,
        rope_scale: float = 0.0,
        attention: str = "auto",
        cdf_threshold: float = 0.0,
        orientation: Orientation = "auto",
    ) -> io.NodeOutput:
        info = host.model_info(model)
        typed = Typed(
            size_class=size_class,
            orientation=orientation,
            height=height or None,
            width=width or None,
            num_frames=length or None,
            num_steps=steps or None,
            guidance_scale=cfg or None,
            shift=shift or None,
            rope_scale=(1.0, rope_scale, rope_scale) if rope_scale else None,
            attention=ATTENTION[attention],
            nabla_p=cdf_threshold or None,
        )
        chosen = host.settle(model, typed)
        settings = chosen.settings
        report = f"{_where_from(info)}\n{chosen.describe()}"
        host.show_text(cls.hidden, report)
        height, width = settings.default_size
        return io.NodeOutput(
            settings.num_steps,
            settings.guidance_scale,
            settings.shift,
            float(settings.fps),
            width,
            height,
            settings.num_frames,
            host.with_settings(model, settings),
            settings.negative_prompt,
            report,
        )


def _where_from(info: CheckpointInfo) -> str:
    """Return which row of the table a checkpoint was given, and why."""
    facts = (
        f"{name} {getattr(info, name)} ({info.sources[name]})"
        for name in ("task", "seconds", "stage")
        if getattr(info, name) is not None
    )
    return f"{info.path.name}: {info.variant}, {', '.join(facts)}; {info.sources['settings']}"
