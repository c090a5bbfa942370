"""Latents to start from, and what is done to them after sampling."""

from __future__ import annotations

from typing import Any

import torch
from comfy_api.latest import io

from ..kandinsky_core.family import VideoShape, frames_for_seconds
from ..kandinsky_core.flow import normalize_first_frames
from . import host
from .convert import fill_size

CATEGORY = "Kandinsky 5"
MAX_SIDE = 2048
MAX_FRAMES = 509


def size_inputs() -> list[io.Input]:
    """Make width, height and length, as every node that makes a latent has them."""
    return [
        io.Int.Input(
            "width",
            default=768,
            min=16,
            max=MAX_SIDE,
            step=16,
            tooltip="Pixels, a multiple of 16. nano: 128 or 256.",
        ),
        io.Int.Input(
            "height",
            default=512,
            min=16,
            max=MAX_SIDE,
            step=16,
            tooltip="Pixels, a multiple of 16. nano: 128 or 256.",
        ),
        io.Int.Input(
            "length",
            default=121,
            min=1,
            max=MAX_FRAMES,
            step=4,
            tooltip=(
                "Frames, one more than a multiple of 4: 121 is 5 s at 24 fps, 1 is an image. "
                "nano: 17 or 25."
            ),
        ),
    ]


def batch_input() -> io.Input:
    """Return how many at once."""
    return io.Int.Input(
        "batch_size", default=1, min=1, max=64, tooltip="Clips or images made at once."
    )


def empty_latent(width: int, height: int, length: int, batch_size: int, channels: int = 16) -> Any:
    """Make a LATENT of zeros.

    Raises:
        ValueError: The size does not fit; the sentence names the nearest that do.
    """
    try:
        shape = VideoShape(length, height, width).latent_shape(channels, batch_size)
    except ValueError as error:
        raise ValueError(f"width, height, length: {error}") from error
    return {"samples": torch.zeros(shape)}


class EmptyLatent(io.ComfyNode):
    """A latent of a size that fits."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="K5_EmptyLatent",
            display_name="Empty Latent (Kandinsky 5)",
            category=CATEGORY,
            description=(
                "An empty video or image to sample. A size or length that is no multiple of what "
                "the models need stops here and names the nearest that are."
            ),
            inputs=[
                *size_inputs(),
                batch_input(),
                io.Float.Input(
                    "seconds",
                    default=0.0,
                    min=0.0,
                    max=20.0,
                    step=0.5,
                    optional=True,
                    tooltip="Duration at 24 fps instead of length; 0 uses length.",
                ),
                io.Model.Input(
                    "model",
                    optional=True,
                    tooltip="Checks the size against what this model can make.",
                ),
            ],
            outputs=[io.Latent.Output(tooltip="Zeros, for a sampler.")],
        )

    @classmethod
    def execute(
        cls,
        width: int,
        height: int,
        length: int,
        batch_size: int,
        seconds: float = 0.0,
        model: Any = None,
    ) -> io.NodeOutput:
        if seconds > 0:
            length = frames_for_seconds(seconds)
        if model is None:
            return io.NodeOutput(empty_latent(width, height, length, batch_size))
        info, only_images = host.model_info(model), host.makes_images_only(model)
        if length > 1 and only_images:
            raise ValueError(
                f"length: {info.variant} makes images, found {length} frames; set it to 1."
            )
        latent = empty_latent(width, height, length, batch_size, info.config.latent_channels)
        if only_images:
            latent["samples"] = latent["samples"][:, :, 0]  # as native image nodes have it
        host.check_size(model, latent)
        return io.NodeOutput({**latent, host.SPACE: host.space_name(model)})


class ImageToVideo(io.ComfyNode):
    """A first frame for the video."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="K5_ImageToVideo",
            display_name="Image to Video (Kandinsky 5)",
            category=CATEGORY,
            description=(
                "Makes an image the first frame: it is resized to fill the size, encoded and put "
                "into both conditionings. The model keeps it in place at every step."
            ),
            inputs=[
                io.Conditioning.Input("positive", tooltip="What should happen in the video."),
                io.Conditioning.Input("negative", tooltip="What to guide away from."),
                io.Vae.Input("vae", tooltip="The model's own video VAE."),
                io.Image.Input(
                    "image",
                    tooltip="The first frame; with several, each starts a clip of the batch.",
                ),
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
        image: torch.Tensor,
        width: int,
        height: int,
        length: int,
        batch_size: int,
    ) -> io.NodeOutput:
        if len(image) not in (1, batch_size):
            raise ValueError(
                f"image: expected 1 image or {batch_size} (one a clip), found {len(image)}; "
                "set batch_size to their number."
            )
        latent = empty_latent(width, height, length, batch_size)
        frame, space = host.encode_first_frame(vae, fill_size(image, height, width))
        values = {host.FIRST_FRAME: frame, host.SPACE: space}
        return io.NodeOutput(
            host.set_conditioning(positive, values),
            host.set_conditioning(negative, values),
            latent,
        )


class NormalizeFirstFrames(io.ComfyNode):
    """Removes the shift in colour and contrast after the first frame of an image-to-video clip."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="K5_NormalizeFirstFrames",
            display_name="Normalize First Frames (Kandinsky 5)",
            category=CATEGORY,
            description=(
                "Pulls brightness and contrast of the first frames of an image-to-video latent "
                "towards those of the frames after them, as the reference does after sampling. "
                "Clips of 13 frames or fewer are left alone."
            ),
            inputs=[
                io.Model.Input("model", tooltip="The model that sampled the latent."),
                io.Latent.Input("latent", tooltip="A finished image-to-video latent."),
                io.Boolean.Input(
                    "enabled",
                    default=True,
                    optional=True,
                    tooltip="Off passes the latent on as it was sampled, to compare.",
                ),
            ],
            outputs=[io.Latent.Output("latent_out", display_name="latent")],
        )

    @classmethod
    def execute(cls, model: Any, latent: dict[str, Any], enabled: bool = True) -> io.NodeOutput:
        if not enabled:
            return io.NodeOutput(latent)
        samples = host.to_model_space(model, latent["samples"])
        samples = host.to_vae_space(model, normalize_first_frames(samples))
        return io.NodeOutput({**latent, "samples": samples})
