"""The networks: CrossDiT and the two autoencoders."""

from .dit import AroundBlock, AroundBlocks, CrossDiT
from .dit_memory import cache_bytes, call_bytes
from .latent_space import to_model_space, to_vae_space
from .ops import Ops, TorchOps
from .packed import (
    PackedEmbedding,
    PackedLinear,
    PackedOps,
    PackedWeight,
    hold_instead,
    packed_names,
)
from .tiling import TilePlan, plan_bytes, plan_tiles
from .vae_image import ImageVAE
from .vae_memory import tensor_bytes, tile_bytes
from .vae_video import VideoVAE

__all__ = [
    "AroundBlock",
    "AroundBlocks",
    "CrossDiT",
    "ImageVAE",
    "Ops",
    "PackedEmbedding",
    "PackedLinear",
    "PackedOps",
    "PackedWeight",
    "TilePlan",
    "TorchOps",
    "VideoVAE",
    "cache_bytes",
    "call_bytes",
    "hold_instead",
    "packed_names",
    "plan_bytes",
    "plan_tiles",
    "tensor_bytes",
    "tile_bytes",
    "to_model_space",
    "to_vae_space",
]
