"""Prompt lists: one run of the workflow for every prompt."""

from __future__ import annotations

from typing import Any, get_args

from comfy_api.latest import io

from ..kandinsky_core.prompts import MOST_PROMPTS, Split
from ..kandinsky_core.seeds import MOST_SEED
from . import host
from .sampler_inputs import seed_input

_OWN: dict[str, Any] = {
    "steps": io.Int,
    "cfg": io.Float,
    "shift": io.Float,
    "width": io.Int,
    "height": io.Int,
    "length": io.Int,
}
"""Further outputs: settings that a prompt may have of its own."""


class PromptList(io.ComfyNode):
    """Prompts and seeds, as lists."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="K5_PromptList",
            display_name="Prompt List (Kandinsky 5)",
            category="Kandinsky 5",
            description=(
                "Runs the nodes after it once for every prompt of a list. Settings of one prompt "
                "stand behind it: a red circle moves up | seed=7 steps=20. Run saves nothing "
                "before all are done; Edit > Queue Kandinsky 5 prompts one by one saves each "
                "before the next begins."
            ),
            inputs=[
                io.String.Input(
                    "text",
                    multiline=True,
                    tooltip="Prompts, one a line; a line that begins with # is a comment.",
                ),
                io.Combo.Input(
                    "file",
                    options=[host.NO_FILE, *host.input_texts()],
                    default=host.NO_FILE,
                    tooltip="A .txt file in ComfyUI's input folder, whose prompts come after text.",
                ),
                io.Combo.Input(
                    "split",
                    options=list(get_args(Split)),
                    default="auto",
                    tooltip=(
                        "lines: each is a prompt. blocks: several lines each, between --- or "
                        "empty lines. auto: blocks if there is a line of ---, else lines."
                    ),
                ),
                seed_input("Of the first prompt; a prompt's own seed=... wins."),
                io.Int.Input(
                    "seed_step",
                    default=1,
                    min=0,
                    max=1_000_000,
                    tooltip="Added for every further prompt; 0 gives all the same seed.",
                ),
                io.Int.Input(
                    "start",
                    default=1,
                    min=1,
                    max=MOST_PROMPTS,
                    tooltip="Number of the first prompt to run, from 1: goes on after a stop.",
                ),
                io.Int.Input(
                    "count",
                    default=0,
                    min=0,
                    max=MOST_PROMPTS,
                    tooltip=(
                        "How many to run; 0 is all. In one run the results of all of them are in "
                        "memory at once and saved at the end; Edit > Queue Kandinsky 5 prompts one "
                        "by one makes a run of each."
                    ),
                ),
            ],
            outputs=[
                io.String.Output(
                    "prompt", display_name="prompt", tooltip="For Text Encode.", is_output_list=True
                ),
                io.Int.Output(
                    "seed_out", display_name="seed", tooltip="For a sampler.", is_output_list=True
                ),
                io.String.Output(
                    "name",
                    display_name="name",
                    tooltip="Number, first words and seed, for filename_prefix.",
                    is_output_list=True,
                ),
                *(
                    kind.Output(
                        name,
                        display_name=name,
                        tooltip="Where the prompt has it, else 0, the checkpoint's.",
                        is_output_list=True,
                    )
                    for name, kind in _OWN.items()
                ),
            ],
            hidden=[io.Hidden.extra_pnginfo],
        )

    @classmethod
    def validate_inputs(cls, file: str) -> bool:  # noqa: ARG003
        """Leave unknown files to `execute`, whose message says where they belong."""
        return True

    @classmethod
    def fingerprint_inputs(cls, file: str = host.NO_FILE, **_: Any) -> str:
        """Change when the file does."""
        return file if file == host.NO_FILE else host.fingerprint_input(file)

    @classmethod
    def execute(
        cls,
        text: str,
        file: str,
        split: Split,
        seed: int,
        seed_step: int,
        start: int,
        count: int,
    ) -> io.NodeOutput:
        entries = host.read_prompts(text, file, split)
        if start > len(entries):
            raise ValueError(
                f"start: expected at most {len(entries)}, the number of prompts, found {start}."
            )
        numbered = list(enumerate(entries))[start - 1 :]
        if count:
            numbered = numbered[:count]
        # beyond the largest seed it goes on from 0
        seeds = [
            entry.settings.get("seed", (seed + index * seed_step) % (MOST_SEED + 1))
            for index, entry in numbered
        ]
        names = [
            f"{index + 1:03}_{entry.short_name}_seed{own}"
            for (index, entry), own in zip(numbered, seeds, strict=True)
        ]
        own = [[entry.settings.get(name, 0) for _, entry in numbered] for name in _OWN]
        prompts = [entry.prompt for _, entry in numbered]
        for prompt, its_seed, name in zip(prompts, seeds, names, strict=True):
            values = {"prompt": prompt, "seed": its_seed, "name": name}
            host.record(cls.hidden, "K5_PromptList", values)
        return io.NodeOutput(prompts, seeds, names, *own)
