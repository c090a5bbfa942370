"""The two autoencoders, their tiles, and their memory."""

from .image import ImageVAE
from .latent_space import to_model_space, to_vae_space
from .memory import tensor_bytes, tile_bytes
from .tiling import TilePlan, plan_bytes, plan_tiles
from .video import VideoVAE, encode_last_frame

__all__ = [
    "ImageVAE",
    "TilePlan",
    "VideoVAE",
    "encode_last_frame",
    "plan_bytes",
    "plan_tiles",
    "tensor_bytes",
    "tile_bytes",
    "to_model_space",
    "to_vae_space",
]
