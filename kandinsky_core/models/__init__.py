"""The networks: CrossDiT and the two autoencoders."""

from .dit import CrossDiT
from .dit_memory import cache_bytes, call_bytes
from .ops import Ops, PackedOps, TorchOps
from .vae import (
    ImageVAE,
    TilePlan,
    VideoVAE,
    encode_last_frame,
    plan_bytes,
    plan_tiles,
    tensor_bytes,
    tile_bytes,
    to_model_space,
    to_vae_space,
)
from .visual_stack import AroundBlock, AroundBlocks

__all__ = [
    "AroundBlock",
    "AroundBlocks",
    "CrossDiT",
    "ImageVAE",
    "Ops",
    "PackedOps",
    "TilePlan",
    "TorchOps",
    "VideoVAE",
    "cache_bytes",
    "call_bytes",
    "encode_last_frame",
    "plan_bytes",
    "plan_tiles",
    "tensor_bytes",
    "tile_bytes",
    "to_model_space",
    "to_vae_space",
]
