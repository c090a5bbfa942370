"""Pictures that a CONDITIONING carries: given frames and images to edit, checked before sampling.

Letters: B batch, C channels, G given latent frames, h w latent grid.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from typing import Any

from torch import Tensor

from ....kandinsky_core.checkpoint import CheckpointInfo
from ....kandinsky_core.family import EXAMPLE_FILES, Task
from ....kandinsky_core.models import to_model_space
from ..latents import SPACE, LatentSpace, pixel_size

FIRST_FRAME = "k5_first_frame"
"""Conditioning key: encoded frames (B or 1, C, G, h, w) in VAE space that start the clip."""
LAST_FRAME = "k5_last_frame"
"""Conditioning key: encoded frames, likewise, that end it."""
SOURCE = "k5_source"
"""Conditioning key: encoded image (B or 1, C, h, w) or (B or 1, C, 1, h, w) to edit."""
SEEN = "k5_seen"
"""Conditioning key: number, height and width of the pictures that the text encoder looked at."""

_KEYS = {"first_frame": FIRST_FRAME, "last_frame": LAST_FRAME, "source": SOURCE}
_WORDS = {
    "first_frame": ("first frame", "Image to Video (Kandinsky 5)"),
    "last_frame": ("last frame", "First and Last Frame (Kandinsky 5)"),
    "source": ("image to edit", "Edit Image (Kandinsky 5)"),
}
"""What each is called, and the node that gives the latent it fits."""


def visual_conditions(
    entry: Mapping[str, Any], info: CheckpointInfo, space: LatentSpace, noise: Tensor
) -> dict[str, Tensor]:
    """Check the pictures of one entry of a CONDITIONING against the model and the latent.

    Args:
        entry: Values of the entry, and "prompt_type" from the host.
        info: The model.
        space: The latents it works with.
        noise: (B, C, T, h, w), or (B, C, h, w) for an image.

    Returns:
        Those of first_frame, last_frame and source that there are, in model space,
        (B or 1, C, G, h, w) each.

    Raises:
        ValueError: A picture does not belong to the model or the latent, or an edit has none.
    """
    found = {name: entry[key] for name, key in _KEYS.items() if entry.get(key) is not None}
    if not found and info.tasks == ("i2i",):
        raise ValueError(
            f"{entry.get('prompt_type', 'positive')}: this model edits images and found none; put "
            "Edit Image (Kandinsky 5) between Text Encode and the sampler, for both prompts."
        )
    for name, latents in found.items():
        _check(name, latents, entry.get(SPACE), info, space, noise)
    return {
        name: to_model_space(latents if latents.ndim == 5 else latents[:, :, None], space.config)
        for name, latents in found.items()
    }


def task_of(entries: Iterable[Mapping[str, Any]], latents: Tensor) -> Task:
    """Return what is made from what.

    Args:
        entries: Values of each entry of the positive CONDITIONING.
        latents: (B, C, T, h, w), or (B, C, h, w) for an image.
    """
    given = {name for entry in entries for name, key in _KEYS.items() if entry.get(key) is not None}
    if "source" in given:
        return "i2i"
    if given:
        return "i2v"
    return "t2i" if latents.ndim == 4 or latents.shape[2] == 1 else "t2v"


def _check(
    name: str,
    latents: Tensor,
    encoded_in: str | None,
    info: CheckpointInfo,
    space: LatentSpace,
    noise: Tensor,
) -> None:
    what, node = _WORDS[name]
    if not info.config.visual_cond:
        raise ValueError(
            f"model: {info.variant} makes images from text and takes no {what}; use an "
            f"{'image-edit' if name == 'source' else 'image-to-video'} checkpoint."
        )
    needed: Task = "i2i" if name == "source" else "i2v"
    if needed not in info.tasks:
        aim = "edit images" if name == "source" else f"go by a given {what}"
        kind = "image-edit" if name == "source" else "image-to-video"
        raise ValueError(
            f"model: {info.path.name} ({info.variant}) was not trained to {aim} (it makes "
            f"{', '.join(info.tasks)}); load an {kind} checkpoint such as {EXAMPLE_FILES[needed]}."
        )
    if encoded_in is not None and encoded_in != space.name:
        raise ValueError(
            f"vae: the {what} was encoded with the {encoded_in} VAE, this model "
            f"({info.variant}) needs the {space.name} VAE; load that one."
        )
    is_clip = noise.ndim == 5
    if latents.shape[-2:] != noise.shape[-2:] or (name != "source" and not is_clip):
        wanted, given = ("x".join(map(str, pixel_size(each))) for each in (noise, latents))
        raise ValueError(
            f"latent: its frames are {wanted} pixels (height x width), the {what} is "
            f"{given}; use the latent that {node} returns."
        )
    if name == "source" and is_clip and noise.shape[2] != 1:
        raise ValueError(
            f"latent: an edit makes one image, found {noise.shape[2]} latent frames; use the "
            f"latent that {node} returns."
        )


def check_seen(name: str, conditioning: list[Any], shape: tuple[int, int, int]) -> None:
    """Make sure that the text encoder looked at the pictures that will be edited.

    Args:
        name: Input that the conditioning came in by.
        conditioning: CONDITIONING.
        shape: Number, height and width of the pictures.

    Raises:
        ValueError: It looked at others, by number or size.
    """
    for _, entry in conditioning:
        seen = entry.get(SEEN)
        if seen is None:
            logging.warning(
                "Kandinsky 5: %s was encoded without the image to edit; choose the task i2i in "
                "Text Encode (Kandinsky 5) and connect the image.",
                name,
            )
        elif seen != shape:
            shown, wanted = ("{} of {}x{}".format(*each) for each in (seen, shape))
            raise ValueError(
                f"{name}: the text encoder was shown another image ({shown} pixels, height x "
                f"width) than the one to edit ({wanted}); connect the image of Fit Image "
                "(Kandinsky 5) to Text Encode and to this node."
            )
