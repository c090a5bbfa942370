"""Presets: every value of a kind of work at once."""

from __future__ import annotations

from typing import get_args

from comfy_api.latest import io

from ..kandinsky_core.caching import describe_release
from ..kandinsky_core.checkpoint import NEEDS
from ..kandinsky_core.family import PRESETS, Orientation
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
                "the loaders, the samplers and Empty Latent."
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
                _Choice.Output(
                    "vae_name", display_name="vae_name", tooltip="For vae_name of Load VAE."
                ),
                _Choice.Output(
                    "qwen_name",
                    display_name="qwen_name",
                    tooltip="For qwen_name of Load Text Encoders.",
                ),
                _Choice.Output(
                    "clip_name",
                    display_name="clip_name",
                    tooltip="For clip_name of Load Text Encoders.",
                ),
                _Choice.Output(
                    "weight_dtype",
                    display_name="weight_dtype",
                    tooltip="For weight_dtype of Load Model: by graphics card and file.",
                ),
            ],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def execute(cls, preset: str, orientation: Orientation) -> io.NodeOutput:
        row = PRESETS[preset]
        chosen, release = row.choose(orientation), row.release
        settings = chosen.settings
        name = host.NANO_EDIT if release.task == "i2i" else host.NANO
        qwen, clip, vae = host.NANO, host.NO_FILE, host.NANO
        if row.file_name is not None and row.parts is not None:
            name = host.find_model(row.file_name, release)
            qwen, clip = (host.find_part("text_encoders", part) for part in row.parts[:2])
            vae = host.find_part("vae", row.parts[2])
        report = (
            f"{describe_release(release)}: {name}; needs {NEEDS[release.variant]}\n"
            f"text encoders {qwen}, {clip}; VAE {vae}\n"
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
            vae,
            qwen,
            clip,
            "default",
        )
