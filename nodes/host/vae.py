"""VAE: the core's autoencoders as ComfyUI's VAE object, for native nodes and ours.

Letters: B batch, C channels, F frames, T latent frames, h w latent grid.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import comfy.model_management
import comfy.model_patcher
import comfy.sd
import torch
from einops import rearrange
from torch import Tensor, nn

from ...kandinsky_core.checkpoint import load_vae as load_core_vae
from ...kandinsky_core.family import ImageVAEConfig, VideoVAEConfig
from ...kandinsky_core.models import ImageVAE, Tiles, VideoVAE, fit_tiles, tile_bytes
from ...kandinsky_core.models import encode_last_frame as encode_as_last
from .latents import NANO, SPACE, LatentSpace, space_of_vae
from .run import Progress, check_cancelled

GIB = 2**30
SAFETY = 0.8
"""Share of the free memory that a run may plan to use."""
COMFORTABLE_BUDGET = 8 * GIB
"""What ComfyUI is asked to free for a run; tiles make do with less."""


class Autoencoder(nn.Module):
    """What ComfyUI calls: pictures are (B, 3, H, W), and each run fits the memory that is free."""

    def __init__(self, network: VideoVAE | ImageVAE) -> None:
        super().__init__()
        self.network = network
        self.is_video = isinstance(network.config, VideoVAEConfig)

    def encode(self, pixels: Tensor) -> Tensor:
        """Return pixels (B, 3, F, H, W), or (B, 3, H, W) for the image VAE, to latents."""
        clip = pixels if pixels.ndim == 5 else pixels[:, :, None]
        time = (
            (clip.shape[2] - 1) // self.network.config.temporal_compression if self.is_video else 0
        )
        space = self.network.config.spatial_compression
        grid = (time + 1, clip.shape[3] // space, clip.shape[4] // space)
        tiling = choose_tiles(self.network, len(clip), grid, pixels.device, "encode")
        latents = self.network.encode(clip, tiling=tiling, on_tile=_cancellable)
        return latents if pixels.ndim == 5 else latents[:, :, 0]

    def decode(self, latents: Tensor, **_: Any) -> Tensor:
        """Return latents to pixels; the inverse of `encode` in shapes."""
        clip = latents if latents.ndim == 5 else latents[:, :, None]
        tiling = choose_tiles(self.network, len(clip), clip.shape[2:], latents.device, "decode")
        pixels = self.network.decode(clip, tiling=tiling, on_tile=_cancellable)
        return pixels if latents.ndim == 5 else pixels[:, :, 0]


class VAE(comfy.sd.VAE):
    """A VAE of the family."""

    def __init__(self, network: VideoVAE | ImageVAE) -> None:
        # the host's smallest VAE brings every attribute that this version of the host expects
        super().__init__(sd={"pixel_space_vae": torch.tensor(1.0)})
        config = network.config
        self.space: LatentSpace = space_of_vae(config)
        self.is_video = isinstance(config, VideoVAEConfig)
        self.latent_channels = config.latent_channels
        self.latent_dim = 3 if self.is_video else 2
        self.downscale_ratio: Any = config.spatial_compression
        self.upscale_ratio: Any = config.spatial_compression
        if isinstance(config, VideoVAEConfig):
            time, space = config.temporal_compression, config.spatial_compression
            self.upscale_ratio = (lambda t: max(0, (t - 1) * time + 1), space, space)
            self.upscale_index_formula = (time, space, space)
            self.downscale_ratio = (lambda f: max(0, (f - 1) // time + 1), space, space)
            self.downscale_index_formula = (time, space, space)
        self.working_dtypes = [torch.bfloat16, torch.float32]
        self.vae_dtype = comfy.model_management.vae_dtype(self.device, self.working_dtypes)
        self.first_stage_model = Autoencoder(network).eval().to(self.vae_dtype)
        self.memory_used_decode = self._decode_bytes
        self.memory_used_encode = self._encode_bytes
        self.patcher = comfy.model_patcher.ModelPatcher(
            self.first_stage_model,
            load_device=self.device,
            offload_device=comfy.model_management.vae_offload_device(),
        )
        # its layers are torch's own, so the host could not use one that it left behind
        self.disable_offload = True
        self.size = None
        self.model_size()

    @property
    def network(self) -> VideoVAE | ImageVAE:
        """The core's autoencoder."""
        return self.first_stage_model.network

    def _decode_bytes(self, shape: Sequence[int], dtype: torch.dtype) -> int:
        grid = shape[2:] if len(shape) == 5 else (1, *shape[2:])
        return self._bytes((shape[0], shape[1], *grid), dtype, "decode")

    def _encode_bytes(self, shape: Sequence[int], dtype: torch.dtype) -> int:
        size = shape[2:] if len(shape) == 5 else (1, *shape[2:])
        grid = latent_grid(self.network.config, size)
        return self._bytes((shape[0], self.latent_channels, *grid), dtype, "encode")

    def _bytes(self, latent_shape: Sequence[int], dtype: torch.dtype, direction: Any) -> int:
        """Return what the host should free: all that one tile would take, up to a comfortable
        budget."""
        needed = tile_bytes(
            self.network.config, latent_shape[2:], latent_shape[0], dtype, direction
        )
        return max(1, min(needed, COMFORTABLE_BUDGET))

    def vae_encode_crop_pixels(self, pixels: Tensor) -> Tensor:
        """Cut an IMAGE to what the VAE takes: sides, and for video frames, that fit."""
        pixels = super().vae_encode_crop_pixels(pixels)
        if self.is_video and pixels.ndim == 4:
            time = self.network.config.temporal_compression
            frames = (pixels.shape[0] - 1) // time * time + 1
            if frames != pixels.shape[0]:
                logging.warning(
                    "Kandinsky 5: %d frames were cut to %d, the nearest %dk + 1 below.",
                    pixels.shape[0],
                    frames,
                    time,
                )
            pixels = pixels[:frames]
        return pixels

    def get_sd(self) -> dict[str, Tensor]:
        """Return weights under the names that `load_vae` reads back."""
        return self.network.state_dict()


def latent_grid(
    config: VideoVAEConfig | ImageVAEConfig, pixels_fhw: Sequence[int]
) -> tuple[int, int, int]:
    """Return latent cells (T, h, w) of frames and pixels."""
    frames, height, width = pixels_fhw
    time = config.temporal_compression if isinstance(config, VideoVAEConfig) else 1
    space = config.spatial_compression
    return (frames - 1) // time + 1, height // space, width // space


def choose_tiles(
    network: VideoVAE | ImageVAE,
    batch: int,
    grid_thw: Sequence[int],
    device: torch.device,
    direction: Literal["encode", "decode"],
    budget: int = 0,
) -> Tiles:
    """Choose tiles by a budget, or by what is free, and say so where one does not do.

    Args:
        network: The autoencoder.
        batch: Clips at once.
        grid_thw: Latent cells.
        device: Where it runs.
        direction: What the tiles are for.
        budget: Bytes; 0 takes what is free, and then tries the smallest tiles if nothing fits.

    Returns:
        The tiles.

    Raises:
        ValueError: Nothing fits the budget that was given.
    """
    free = int(comfy.model_management.get_free_memory(device) * SAFETY)
    tiling = fit_tiles(
        network.config,
        (batch, network.config.latent_channels, *grid_thw),
        budget or free,
        network.dtype,
        direction=direction,
        must_fit=budget > 0,
    )
    if tiling.num_tiles > 1:
        logging.info(
            "Kandinsky 5: the VAE %ss %s latent cells (t, h, w) in %d tiles of up to %s, to fit "
            "%.1f GiB",
            direction,
            " x ".join(map(str, grid_thw)),
            tiling.num_tiles,
            " x ".join(map(str, tiling.largest_thw)),
            (budget or free) / GIB,
        )
    return tiling


def _cancellable(_done: int, _total: int) -> None:
    check_cancelled()


def load_vae(path: Path) -> VAE:
    """Make a VAE from a file.

    Raises:
        CheckpointError: The file is damaged or of another model.
    """
    return VAE(load_core_vae(path))


def encode_images(vae: Any, image: Tensor) -> tuple[Tensor, str]:
    """Encode each image by itself.

    Args:
        vae: VAE.
        image: IMAGE (B, H, W, 3).

    Returns:
        Latents in VAE space, (B, C, 1, h, w) of a video VAE or (B, C, h, w) of an image VAE, and
        the name of the space.

    Raises:
        ValueError: The VAE is not one of Kandinsky 5.
    """
    if not isinstance(vae, VAE):
        raise ValueError(
            "vae: expected the VAE of the model, found another VAE; load it with "
            "Load VAE (Kandinsky 5)."
        )
    return torch.cat([vae.encode(frame[None]) for frame in image]), vae.space.name


def encode_first_frame(vae: Any, image: Tensor) -> tuple[Tensor, str]:
    """Encode each image as a clip of one frame: as `encode_images`, with a video VAE only."""
    _check_video(vae)
    return encode_images(vae, image)


def encode_last_frame(vae: Any, image: Tensor) -> tuple[Tensor, str]:
    """Encode each image as the last latent frame of a clip, which stands for several frames.

    Args:
        vae: VAE.
        image: IMAGE (B, H, W, 3).

    Returns:
        Latents (B, C, 1, h, w) in VAE space, and the name of the space.

    Raises:
        ValueError: The VAE is not one for Kandinsky 5 video.
    """
    _check_video(vae)
    config = vae.network.config
    latents = [encode_as_last(vae.encode, frame[None], config, axis=0) for frame in image]
    return torch.cat(latents), vae.space.name


def encode_clip(vae: Any, frames: Tensor) -> tuple[Tensor, str]:
    """Encode frames (4 k + 1, H, W, 3) as one clip: latents (1, C, k + 1, h, w), name of the space.

    Raises:
        ValueError: The VAE is not one for Kandinsky 5 video.
    """
    _check_video(vae)
    return vae.encode(frames), vae.space.name


def _check_video(vae: Any) -> None:
    if not (isinstance(vae, VAE) and vae.is_video):
        found = f"the {vae.space.name} VAE for images" if isinstance(vae, VAE) else "another VAE"
        raise ValueError(
            f"vae: expected the video VAE of the model, found {found}; load it with "
            "Load VAE (Kandinsky 5)."
        )


class FrameStream(NamedTuple):
    """Frames on their way."""

    num_frames: int
    """In all, of all clips."""
    chunks: Iterator[Tensor]
    """Pixels (1, 3, f, H, W), about [-1, 1], in order."""


def decode_frames(vae: Any, latent: dict[str, Any], memory_budget_gb: float) -> FrameStream:
    """Decode clip by clip, a few frames at a time, with progress and cancel on the node.

    Args:
        vae: From `load_vae`; another one decodes by its own means, at once.
        latent: LATENT of (B, C, T, h, w), or (B, C, h, w) for images.
        memory_budget_gb: GiB that the work may take, for ours; 0 uses what is free.

    Returns:
        The frames; the work is done while they are taken.

    Raises:
        ValueError: The latents are not this VAE's, or the budget is too small.
    """
    if not isinstance(vae, VAE):
        return _decode_by_itself(vae, latent, memory_budget_gb)
    latents, space = latent["samples"], latent.get(SPACE, vae.space.name)
    if space != vae.space.name:
        raise ValueError(
            f"vae: the latent was made for the {space} VAE, found the {vae.space.name} VAE; load "
            "the one that belongs to the model."
        )
    if latents.shape[1] != vae.latent_channels or latents.ndim not in (4, 5):
        raise ValueError(
            f"latent: the {vae.space.name} VAE decodes {vae.latent_channels} channels, found a "
            f"latent of shape {tuple(latents.shape)}; load the VAE that belongs to the model."
        )
    if not vae.is_video and latents.ndim == 5 and latents.shape[2] > 1:
        raise ValueError(
            f"vae: the {vae.space.name} VAE decodes images, found a video latent of "
            f"{latents.shape[2]} frames; load the model's video VAE."
        )
    clips = latents if latents.ndim == 5 else latents[:, :, None]
    step = vae.network.config.temporal_compression if vae.is_video else 1
    num_frames = len(clips) * ((clips.shape[2] - 1) * step + 1)
    return FrameStream(num_frames, _decoded(vae, clips, memory_budget_gb))


def _decoded(vae: VAE, clips: Tensor, memory_budget_gb: float) -> Iterator[Tensor]:
    needed = vae.memory_used_decode(clips[:1].shape, vae.vae_dtype)
    comfy.model_management.load_models_gpu(
        [vae.patcher], memory_required=needed, force_full_load=vae.disable_offload
    )
    budget = int(memory_budget_gb * GIB)
    tiling = choose_tiles(vae.network, 1, clips.shape[2:], vae.device, "decode", budget)
    progress = Progress(len(clips) * tiling.num_tiles)
    for clip in clips.split(1):
        yield from vae.network.decode_frames(
            clip.to(vae.device, torch.float32),
            tiling=tiling,
            on_tile=lambda _done, _total: progress.advance(),
        )


def _decode_by_itself(
    vae: comfy.sd.VAE, latent: dict[str, Any], memory_budget_gb: float
) -> FrameStream:
    """Decode with a VAE of other nodes, which takes tiles where memory runs out; see
    `decode_frames`."""
    latents, space = latent["samples"], latent.get(SPACE)
    if space == NANO or latents.shape[1] != vae.latent_channels:
        raise ValueError(
            f"vae: it decodes {vae.latent_channels} channels, found a latent of shape "
            f"{tuple(latents.shape)}{f' for the {space} VAE' if space else ''}; load the VAE that "
            "belongs to the model."
        )
    if memory_budget_gb:
        logging.info("Kandinsky 5: memory_budget_gb is for VAEs of Load VAE (Kandinsky 5) alone.")
    if latents.ndim == 5 and vae.latent_dim == 2:
        latents = rearrange(latents, "b c t h w -> (b t) c h w")
    images = vae.decode(latents).flatten(0, -4)  # from (B, H, W, 3), or (B, F, H, W, 3)
    chunks = (rearrange(image, "h w c -> 1 c 1 h w") * 2 - 1 for image in images)
    return FrameStream(len(images), chunks)
