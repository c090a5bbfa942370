"""Text Encode: a prompt to CONDITIONING."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io

from ..kandinsky_core.family import TASKS
from . import host
from .convert import to_unit_range


class TextEncode(io.ComfyNode):
    """A prompt, in the template of its task."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="K5_TextEncode",
            display_name="Text Encode (Kandinsky 5)",
            category="Kandinsky 5",
            description=(
                "Encodes a prompt as the model was trained: in the template of the task, as a "
                "plain sentence. Weights such as (word:1.2) have no effect."
            ),
            inputs=[
                io.Clip.Input(
                    "clip",
                    tooltip=(
                        "From Load Text Encoders (Kandinsky 5), or ComfyUI's own kandinsky5 CLIP, "
                        "which is used as the reference uses its parts."
                    ),
                ),
                io.String.Input(
                    "text",
                    multiline=True,
                    dynamic_prompts=True,
                    tooltip="What to make, in sentences. Empty is allowed.",
                ),
                io.Combo.Input(
                    "task",
                    options=list(TASKS),
                    default="t2v",
                    tooltip=(
                        "t2v text to video, i2v image to video, t2i text to image, i2i image "
                        "editing (needs the image)."
                    ),
                ),
                io.Image.Input(
                    "image",
                    optional=True,
                    tooltip="The picture to edit, which the text encoder looks at (i2i only).",
                ),
            ],
            outputs=[io.Conditioning.Output(tooltip="Text tokens and the pooled vector.")],
        )

    @classmethod
    def execute(cls, clip: Any, text: str, task: str, image: Any = None) -> io.NodeOutput:
        images = None if image is None else to_unit_range(image[..., :3])
        conditioning = host.encode_text(clip, text, task, images)
        return io.NodeOutput(host.set_conditioning(conditioning, {host.PROMPT: text}))
