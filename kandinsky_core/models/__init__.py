"""The networks: CrossDiT and the two autoencoders."""

from .dit import AroundBlock, AroundBlocks, CrossDiT
from .dit_memory import cache_bytes, call_bytes
from .latent_space import to_model_space, to_vae_space
from .ops import Ops, PackedOps, TorchOps
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
    "PackedOps",
    "TilePlan",
    "TorchOps",
    "VideoVAE",
    "cache_bytes",
    "call_bytes",
    "plan_bytes",
    "plan_tiles",
    "tensor_bytes",
    "tile_bytes",
    "to_model_space",
    "to_vae_space",
]
