"""Load LoRA: a small change of the weights, and the text that calls for it."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io

from . import host


class LoadLora(io.ComfyNode):
    """A LoRA of any style."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="K5_LoadLora",
            display_name="Load LoRA (Kandinsky 5)",
            category="Kandinsky 5/loaders",
            description=(
                "Adds a LoRA from models/loras to the model, whatever program wrote it: the "
                "official ones, Diffusers, musubi-tuner, ComfyUI. Its trigger text goes before "
                "the prompts of the CLIP."
            ),
            inputs=[
                io.Model.Input("model", tooltip="The model the LoRA was trained on."),
                io.Combo.Input(
                    "lora_name",
                    options=host.choices("loras"),
                    tooltip="The LoRA. One of another model size is refused.",
                ),
                io.Float.Input(
                    "strength",
                    default=1.0,
                    min=-10.0,
                    max=10.0,
                    step=0.05,
                    tooltip="1 is as trained, 0 changes nothing, negative values do the opposite.",
                ),
                io.Clip.Input(
                    "clip",
                    optional=True,
                    tooltip=(
                        "From Load Text Encoders (Kandinsky 5), or ComfyUI's own of type "
                        "kandinsky5. Its copy puts the trigger text before each prompt: use it for "
                        "the positive prompt alone."
                    ),
                ),
            ],
            outputs=[
                io.Model.Output(tooltip="The model with the LoRA added."),
                io.Clip.Output(tooltip="The clip that adds the trigger text, if one was given."),
                io.String.Output(
                    "trigger",
                    display_name="trigger",
                    tooltip="The LoRA's trigger text; empty if it has none or strength is 0.",
                ),
            ],
        )

    @classmethod
    def validate_inputs(cls, lora_name: str) -> bool:  # noqa: ARG003
        """Leave unknown names to `execute`, whose message says where files belong."""
        return True

    @classmethod
    def execute(
        cls, model: Any, lora_name: str, strength: float, clip: Any = None
    ) -> io.NodeOutput:
        if strength == 0:
            return io.NodeOutput(model, clip, "")
        path = host.locate("loras", lora_name, "lora_name")
        model, trigger = host.with_lora(model, path, strength)
        if clip is not None and trigger:
            clip = host.with_triggers(clip, trigger)
        return io.NodeOutput(model, clip, trigger)
