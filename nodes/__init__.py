"""The ComfyUI nodes of Kandinsky 5, one file a topic; only `host` knows ComfyUI's internals."""

from __future__ import annotations

from comfy_api.latest import ComfyExtension, io

from . import host
from .continuing import ExtendVideo, FirstLastFrame
from .decode import Decode, DecodeVideo
from .editing import EditImage, FitImage
from .expand import ExpandPrompt
from .latents import EmptyLatent, ImageToVideo, NormalizeFirstFrames
from .loaders import LoadModel, LoadTextEncoders, LoadVAE
from .lora import LoadLora
from .magcache import CacheSteps, CalibrateCache
from .nabla import SparseAttention
from .nabla_inspector import NablaInspector
from .plan import PlanMemory
from .presets import PresetValues
from .prompt_list import PromptList
from .sampling import Sampler, Schedule
from .settings import Settings
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
    LoadLora,
    PresetValues,
    PromptList,
    ExpandPrompt,
    FitImage,
    EditImage,
    ExtendVideo,
    FirstLastFrame,
    PlanMemory,
    DecodeVideo,
]


class Kandinsky5Extension(ComfyExtension):
    """The pack as ComfyUI sees it."""

    def __init__(self) -> None:
        # here, because no host up to 0.11 calls on_load
        host.add_routes()

    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        """List the nodes."""
        return NODES
