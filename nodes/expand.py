"""Expand Prompt: a short prompt to a detailed one."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io

from ..kandinsky_core.family import TASKS
from ..kandinsky_core.text import (
    EXPANSION_TEMPERATURE,
    EXPANSION_TOKENS,
    LANGUAGES,
    MAX_TEMPERATURE,
)
from . import host
from .convert import to_unit_range
from .sampler_inputs import seed_input


class ExpandPrompt(io.ComfyNode):
    """A prompt, written out by the text encoder."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="K5_ExpandPrompt",
            display_name="Expand Prompt (Kandinsky 5)",
            category="Kandinsky 5",
            description=(
                "Has Qwen2.5-VL, the text encoder that is loaded anyway, write a short prompt out "
                "in the detail that the models were trained on. If the result is unusable, the "
                "original prompt is passed on and the note says why."
            ),
            inputs=[
                io.Clip.Input(
                    "clip",
                    tooltip=(
                        "From Load Text Encoders (Kandinsky 5). nano's encoder cannot write: the "
                        "prompt is passed on unchanged."
                    ),
                ),
                io.String.Input(
                    "prompt",
                    multiline=True,
                    dynamic_prompts=True,
                    tooltip="What to make, in a few words of any language.",
                ),
                io.Combo.Input(
                    "task",
                    options=list(TASKS),
                    default="t2v",
                    tooltip=(
                        "What the prompt is for: t2v text to video, i2v image to video, t2i text "
                        "to image, i2i image editing."
                    ),
                ),
                io.Combo.Input(
                    "language",
                    options=list(LANGUAGES),
                    default=LANGUAGES[0],
                    tooltip="English, or as written: the language of the prompt, such as Russian.",
                ),
                seed_input(
                    "Another seed gives another text, except at temperature 0.", changes=True
                ),
                io.Int.Input(
                    "max_tokens",
                    default=EXPANSION_TOKENS,
                    min=32,
                    max=1024,
                    tooltip=(
                        "Most tokens to write; a sentence that does not fit is dropped. The video "
                        "models read 256, the image model 512."
                    ),
                ),
                io.Float.Input(
                    "temperature",
                    default=EXPANSION_TEMPERATURE,
                    min=0.0,
                    max=MAX_TEMPERATURE,
                    step=0.05,
                    tooltip="0 always writes the likeliest word; more is more varied.",
                ),
                io.Image.Input(
                    "image",
                    optional=True,
                    tooltip=(
                        "The first frame (i2v) or the picture to edit (i2i), which the encoder "
                        "looks at; of several, the first. Other tasks do not use it."
                    ),
                ),
            ],
            outputs=[
                io.String.Output(
                    "expanded",
                    display_name="prompt",
                    tooltip="The expanded prompt, or the original one.",
                ),
                io.String.Output(
                    "note", display_name="note", tooltip="What was done, or why nothing was."
                ),
            ],
        )

    @classmethod
    def execute(
        cls,
        clip: Any,
        prompt: str,
        task: str,
        language: str,
        seed: int,
        max_tokens: int,
        temperature: float,
        image: Any = None,
    ) -> io.NodeOutput:
        result = host.expand_prompt(
            clip,
            prompt,
            task=task,
            images=None if image is None else to_unit_range(image[..., :3]),
            language=language,
            seed=seed,
            max_tokens=max_tokens,
            temperature=temperature,
        )
        return io.NodeOutput(result.prompt, result.note)
