"""Presets: every value of a kind of work at once."""

from __future__ import annotations

from typing import get_args

from comfy_api.latest import io

from ..kandinsky_core.caching import describe_release
from ..kandinsky_core.checkpoint import NEEDS
from ..kandinsky_core.overrides import Orientation
from ..kandinsky_core.presets import PRESETS
from . import host

_Choice = io.Custom("COMBO")
"""A STRING does not connect to a list of choices; this type does."""


class PresetValues(io.ComfyNode):
    """One choice that fills the other nodes."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="K5_Preset",
            display_name="Preset (Kandinsky 5)",
            category="Kandinsky 5",
            description=(
                "Every value of one kind of work, as its checkpoint was made for: connect them to "
                "the loader, the samplers and Empty Latent."
            ),
            inputs=[
                io.Combo.Input(
                    "preset",
                    options=list(PRESETS),
                    tooltip="SD is the 512 class of sizes, HD the 1024 class.",
                ),
                io.Combo.Input(
                    "orientation",
                    options=list(get_args(Orientation)),
                    default="auto",
                    tooltip="Which of the trained sizes; auto takes the checkpoint's default.",
                ),
            ],
            outputs=[
                io.Int.Output("steps", display_name="steps", tooltip="For a sampler."),
                io.Float.Output("cfg", display_name="cfg", tooltip="For a sampler."),
                io.Float.Output("shift", display_name="shift", tooltip="For a sampler."),
                io.Int.Output("width", display_name="width", tooltip="For Empty Latent."),
                io.Int.Output("height", display_name="height", tooltip="For Empty Latent."),
                io.Int.Output("length", display_name="length", tooltip="For Empty Latent."),
                io.Float.Output("fps", display_name="fps", tooltip="For Create Video."),
                io.String.Output(
                    "negative_prompt",
                    display_name="negative_prompt",
                    tooltip="For the negative Text Encode.",
                ),
                _Choice.Output(
                    "model_name",
                    display_name="model_name",
                    tooltip="The checkpoint's file, for model_name of Load Model.",
                ),
                _Choice.Output(
                    "task", display_name="task", tooltip="For task of Text Encode and the loader."
                ),
                io.String.Output(
                    "report",
                    display_name="report",
                    tooltip="The values, their sources and the files needed.",
                ),
            ],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def execute(cls, preset: str, orientation: Orientation) -> io.NodeOutput:
        chosen = PRESETS[preset].choose(orientation)
        release, settings = PRESETS[preset].release, chosen.settings
        stem = PRESETS[preset].file_name
        name = host.NANO if stem is None else host.find_name("diffusion_models", stem)
        report = (
            f"{describe_release(release)}: {name}; needs {NEEDS[release.variant]}\n"
            f"{chosen.describe()}"
        )
        host.show_text(cls.hidden, report)
        height, width = settings.default_size
        return io.NodeOutput(
            settings.num_steps,
            settings.guidance_scale,
            settings.shift,
            width,
            height,
            settings.num_frames,
            float(settings.fps),
            settings.negative_prompt,
            name,
            release.task,
            report,
        )
