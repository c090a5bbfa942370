"""The ComfyUI nodes of Kandinsky 5, one file a topic; only `host` knows ComfyUI's internals."""

from __future__ import annotations

from comfy_api.latest import ComfyExtension, io

from .decode import Decode
from .latents import EmptyLatent, ImageToVideo, NormalizeFirstFrames
from .loaders import LoadModel, LoadTextEncoders, LoadVAE
from .magcache import CacheSteps, CalibrateCache
from .nabla import SparseAttention
from .nabla_inspector import NablaInspector
from .plan import PlanMemory
from .sampling import Sampler, Schedule, Settings
from .text import TextEncode

NODES: list[type[io.ComfyNode]] = [
    LoadModel,
    LoadTextEncoders,
    LoadVAE,
    TextEncode,
    EmptyLatent,
    ImageToVideo,
    Settings,
    Schedule,
    Sampler,
    NormalizeFirstFrames,
    Decode,
    SparseAttention,
    CacheSteps,
    CalibrateCache,
    NablaInspector,
    PlanMemory,
]


class Kandinsky5Extension(ComfyExtension):
    """The pack as ComfyUI sees it."""

    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        """List the nodes."""
        return NODES
