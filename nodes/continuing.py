"""Clips that go on from another, or lead to a given last frame: experimental."""

from __future__ import annotations

from typing import Any

import torch
from comfy_api.latest import io

from ..kandinsky_core.family import check_frames, check_overlap, check_room, check_size
from . import host
from .convert import fill_size
from .latents import CATEGORY, MAX_FRAMES, batch_input, empty_latent, size_inputs


def check_length(length: int, *, first: int, last: bool = False) -> None:
    """Refuse a length that does not fit, or of which all is given."""
    try:
        check_room(length, first=first, last=last)
        check_frames(length)
    except ValueError as error:
        raise ValueError(f"length: {error}") from error


class ExtendVideo(io.ComfyNode):
    """The next part of a clip."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="K5_ExtendVideo",
            display_name="Extend Video (Kandinsky 5)",
            category=CATEGORY,
            description=(
                "Starts a new clip with the last frames of another. Experimental: the weights "
                "were trained to continue one frame, not several."
            ),
            is_experimental=True,
            inputs=[
                io.Conditioning.Input("positive", tooltip="What should happen next."),
                io.Conditioning.Input("negative", tooltip="What to guide away from."),
                io.Vae.Input("vae", tooltip="The model's own video VAE."),
                io.Image.Input("frames", tooltip="The clip so far, of a size that fits the model."),
                io.Int.Input(
                    "overlap",
                    default=1,
                    min=1,
                    max=MAX_FRAMES,
                    step=4,
                    tooltip=(
                        "Frames that the new clip repeats, one more than a multiple of 4: 1 is "
                        "image to video from the last frame, 5 or 9 hand on the motion too."
                    ),
                ),
                io.Int.Input(
                    "length",
                    default=121,
                    min=1,
                    max=MAX_FRAMES,
                    step=4,
                    tooltip="Frames of the new clip, the repeated ones included.",
                ),
            ],
            outputs=[
                io.Conditioning.Output("positive_out", display_name="positive"),
                io.Conditioning.Output("negative_out", display_name="negative"),
                io.Latent.Output("latent", display_name="latent", tooltip="Zeros, for a sampler."),
                io.Image.Output(
                    "before",
                    display_name="before",
                    tooltip="The clip so far without what the new one repeats, to put before it.",
                ),
            ],
        )

    @classmethod
    def execute(
        cls,
        positive: Any,
        negative: Any,
        vae: Any,
        frames: torch.Tensor,
        overlap: int,
        length: int,
    ) -> io.NodeOutput:
        check_overlap(overlap, len(frames))
        height, width = frames.shape[1:3]
        try:
            check_size(height, width)
        except ValueError as error:
            raise ValueError(f"frames: {error} Put Fit Image (Kandinsky 5) before it.") from error
        check_length(length, first=overlap)
        latent = empty_latent(width, height, length, 1)
        start, space = host.encode_clip(vae, frames[-overlap:, ..., :3])
        values = {host.FIRST_FRAME: start, host.SPACE: space}
        return io.NodeOutput(
            host.set_conditioning(positive, values),
            host.set_conditioning(negative, values),
            latent,
            frames[:-overlap],
        )


class FirstLastFrame(io.ComfyNode):
    """A clip between two images."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="K5_FirstLastFrame",
            display_name="First and Last Frame (Kandinsky 5)",
            category=CATEGORY,
            description=(
                "Makes one image the first frame and another the last; the same image twice gives "
                "a loop. Experimental: the weights were not trained for a given last frame."
            ),
            is_experimental=True,
            inputs=[
                io.Conditioning.Input("positive", tooltip="What happens in between."),
                io.Conditioning.Input("negative", tooltip="What to guide away from."),
                io.Vae.Input("vae", tooltip="The model's own video VAE."),
                io.Image.Input(
                    "first", tooltip="The first frame; with several, each starts a clip."
                ),
                io.Image.Input("last", tooltip="The last frame; with several, each ends a clip."),
                *size_inputs(),
                batch_input(),
            ],
            outputs=[
                io.Conditioning.Output("positive_out", display_name="positive"),
                io.Conditioning.Output("negative_out", display_name="negative"),
                io.Latent.Output("latent", display_name="latent", tooltip="Zeros, for a sampler."),
            ],
        )

    @classmethod
    def execute(
        cls,
        positive: Any,
        negative: Any,
        vae: Any,
        first: torch.Tensor,
        last: torch.Tensor,
        width: int,
        height: int,
        length: int,
        batch_size: int,
    ) -> io.NodeOutput:
        for name, image in (("first", first), ("last", last)):
            if len(image) not in (1, batch_size):
                raise ValueError(
                    f"{name}: expected 1 image or {batch_size} (one a clip), found {len(image)}; "
                    "set batch_size to their number."
                )
        check_length(length, first=1, last=True)
        latent = empty_latent(width, height, length, batch_size)
        start, space = host.encode_first_frame(vae, fill_size(first, height, width))
        end, _ = host.encode_last_frame(vae, fill_size(last, height, width))
        values = {host.FIRST_FRAME: start, host.LAST_FRAME: end, host.SPACE: space}
        return io.NodeOutput(
            host.set_conditioning(positive, values),
            host.set_conditioning(negative, values),
            latent,
        )
