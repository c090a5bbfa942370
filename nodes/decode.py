"""Decode: latents to frames, or to a video in a file, a few frames at a time."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import InputImpl, io

from ..kandinsky_core.family import FPS
from ..kandinsky_core.video import to_uint8, write_video
from . import host
from .convert import pixels_to_image


def vae_input() -> io.Input:
    """Return what decodes."""
    return io.Vae.Input(
        "vae",
        tooltip=(
            "From Load VAE (Kandinsky 5). Another one, e.g. of Load VAE, decodes as in VAE Decode."
        ),
    )


def budget_input() -> io.Input:
    """Make `memory_budget_gb`, the memory for the work in GB."""
    return io.Float.Input(
        "memory_budget_gb",
        default=0.0,
        min=0.0,
        max=1024.0,
        step=0.5,
        tooltip=(
            "Memory that the decode may use beside weights and result; 0 uses what is free. Less "
            "means smaller tiles."
        ),
    )


class Decode(io.ComfyNode):
    """Latents to frames within a memory budget."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="K5_Decode",
            display_name="Decode (Kandinsky 5)",
            category="Kandinsky 5",
            description=(
                "Decodes a latent a few frames at a time, so that only the frames themselves grow "
                "with the length of the video. Tiles are chosen by what is free, or by a budget."
            ),
            inputs=[
                vae_input(),
                io.Latent.Input("latent", tooltip="A sampled latent."),
                budget_input(),
            ],
            outputs=[io.Image.Output(tooltip="Frames, for Create Video or Save Image.")],
        )

    @classmethod
    def execute(cls, vae: Any, latent: dict[str, Any], memory_budget_gb: float) -> io.NodeOutput:
        stream = host.decode_frames(vae, latent, memory_budget_gb)
        return io.NodeOutput(pixels_to_image(stream.chunks, stream.num_frames))


class DecodeVideo(io.ComfyNode):
    """Latents to a video in a file, whose frames are never in memory together."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="K5_DecodeVideo",
            display_name="Decode to Video (Kandinsky 5)",
            category="Kandinsky 5",
            description=(
                "Decodes a latent straight into a video: frames are compressed as they come, so "
                "memory does not grow with the length. Save Video copies the result as it is."
            ),
            inputs=[
                vae_input(),
                io.Latent.Input("latent", tooltip="A sampled latent; clips of a batch follow."),
                io.Float.Input(
                    "fps",
                    default=float(FPS),
                    min=1.0,
                    max=120.0,
                    step=1.0,
                    tooltip="Frames per second; the family is trained at 24.",
                ),
                budget_input(),
            ],
            outputs=[
                io.Video.Output(tooltip="H.264 in a temporary file, for Save Video and others.")
            ],
        )

    @classmethod
    def execute(
        cls, vae: Any, latent: dict[str, Any], fps: float, memory_budget_gb: float
    ) -> io.NodeOutput:
        stream = host.decode_frames(vae, latent, memory_budget_gb)
        frames = (frame for chunk in stream.chunks for frame in to_uint8(chunk))
        path = host.temporary_file("video.mp4")
        write_video(path, frames, fps=fps)
        return io.NodeOutput(InputImpl.VideoFromFile(str(path)))
