"""The networks: CrossDiT and the two autoencoders."""

from .dit import AroundBlock, AroundBlocks, CrossDiT
from .dit_memory import cache_bytes, call_bytes
from .ops import Ops, PackedOps, TorchOps
from .vae import (
    ImageVAE,
    Tiles,
    VideoVAE,
    encode_last_frame,
    fit_tiles,
    tensor_bytes,
    tile_bytes,
    tiled_bytes,
    to_model_space,
    to_vae_space,
)

__all__ = [
    "AroundBlock",
    "AroundBlocks",
    "CrossDiT",
    "ImageVAE",
    "Ops",
    "PackedOps",
    "Tiles",
    "TorchOps",
    "VideoVAE",
    "cache_bytes",
    "call_bytes",
    "encode_last_frame",
    "fit_tiles",
    "tensor_bytes",
    "tile_bytes",
    "tiled_bytes",
    "to_model_space",
    "to_vae_space",
]
