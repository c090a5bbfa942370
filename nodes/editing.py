"""Fitting an image to a model, and editing it."""

from __future__ import annotations

from typing import Any, get_args

import torch
from comfy_api.latest import io

from ..kandinsky_core.family import SizeClass, Task, Typed, VideoShape
from . import host
from .convert import fill_size
from .latents import CATEGORY, MAX_SIDE, batch_input


class FitImage(io.ComfyNode):
    """An image at a size that the model was made for."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="K5_FitImage",
            display_name="Fit Image (Kandinsky 5)",
            category=CATEGORY,
            description=(
                "Resizes and crops an image as the reference does: to the supported size of the "
                "nearest aspect for editing, to the model's area with its own aspect for video."
            ),
            inputs=[
                io.Model.Input("model", tooltip="Its checkpoint says which sizes it was made for."),
                io.Image.Input("image", tooltip="One image or several of one size."),
                io.Int.Input(
                    "width",
                    default=0,
                    min=0,
                    max=MAX_SIDE,
                    step=16,
                    tooltip="Pixels; 0 for both sides chooses.",
                ),
                io.Int.Input(
                    "height",
                    default=0,
                    min=0,
                    max=MAX_SIDE,
                    step=16,
                    tooltip="Pixels; 0 for both sides chooses.",
                ),
                io.Combo.Input(
                    "size_class",
                    options=list(get_args(SizeClass)),
                    default="auto",
                    optional=True,
                    tooltip=(
                        "Sizes to choose from, as in Checkpoint Settings: large is 1024 on Pro "
                        "(nano 256). auto goes by width and height, and is small without them."
                    ),
                ),
            ],
            outputs=[
                io.Image.Output("image_out", display_name="image", tooltip="The crop."),
                io.Int.Output("width_out", display_name="width"),
                io.Int.Output("height_out", display_name="height"),
            ],
        )

    @classmethod
    def execute(
        cls,
        model: Any,
        image: torch.Tensor,
        width: int = 0,
        height: int = 0,
        size_class: SizeClass = "auto",
    ) -> io.NodeOutput:
        # any model may take a fitted image, if only to start from its latent
        task: Task = "i2v" if "t2v" in host.model_info(model).tasks else "i2i"
        typed = Typed(size_class=size_class, height=height or None, width=width or None)
        image_size = (image.shape[1], image.shape[2])
        settled = host.settle(model, typed, tasks=(task,), image_size=image_size)
        height, width = settled.shape.size
        return io.NodeOutput(fill_size(image, height, width), width, height)


class EditImage(io.ComfyNode):
    """An image to edit."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="K5_EditImage",
            display_name="Edit Image (Kandinsky 5)",
            category=CATEGORY,
            description=(
                "Gives the model an image to edit: it is encoded and put into both conditionings, "
                "and the model sees it at every step. The prompt says what should change."
            ),
            inputs=[
                io.Conditioning.Input(
                    "positive",
                    tooltip="What should change, encoded together with the same image (task i2i).",
                ),
                io.Conditioning.Input(
                    "negative", tooltip="What to guide away from, encoded with the image too."
                ),
                io.Vae.Input("vae", tooltip="The model's own VAE."),
                io.Image.Input(
                    "image",
                    tooltip="From Fit Image (Kandinsky 5); several are a batch of edits.",
                ),
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
        cls, positive: Any, negative: Any, vae: Any, image: torch.Tensor, batch_size: int = 1
    ) -> io.NodeOutput:
        count, height, width = image.shape[:3]
        if count > 1 and batch_size not in (1, count):
            raise ValueError(
                f"batch_size: {count} images are edited at once and batch_size is {batch_size}; "
                "set it to 1, or give one image to have several results of it."
            )
        try:
            VideoShape(1, height, width).check()
        except ValueError as error:
            raise ValueError(f"image: {error} Put Fit Image (Kandinsky 5) before it.") from error
        for name, conditioning in (("positive", positive), ("negative", negative)):
            host.check_seen(name, conditioning, (count, height, width))
        source, space = host.encode_images(vae, image)
        values = {host.SOURCE: source, host.SPACE: space}
        batch = max(count, batch_size)
        latent = {"samples": torch.zeros((batch, *source.shape[1:])), host.SPACE: space}
        return io.NodeOutput(
            host.set_conditioning(positive, values),
            host.set_conditioning(negative, values),
            latent,
        )
