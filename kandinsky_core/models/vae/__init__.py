"""The two autoencoders, their tiles, and their memory."""

from .image import ImageVAE
from .latent_space import to_model_space, to_vae_space
from .memory import tensor_bytes, tile_bytes
from .tiling import Tiles, fit_tiles, tiled_bytes
from .video import VideoVAE, encode_last_frame

__all__ = [
    "ImageVAE",
    "Tiles",
    "VideoVAE",
    "encode_last_frame",
    "fit_tiles",
    "tensor_bytes",
    "tile_bytes",
    "tiled_bytes",
    "to_model_space",
    "to_vae_space",
]
