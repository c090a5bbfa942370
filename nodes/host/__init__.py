"""Everything that knows ComfyUI's internals: the only importer of comfy.* and folder_paths.

Written for ComfyUI 0.3.75 and later. What the node files need is listed here; the classes
behind it (MODEL, CLIP, VAE) are subclasses of ComfyUI's own, so native nodes take them.
"""

from __future__ import annotations

from .attention import AttentionChoice, with_attention, with_watch
from .caching import measure_ratios, with_magcache
from .files import NANO, Folder, choices, locate, ratio_names, ratios_path
from .foreign import with_foreign_nabla
from .latents import SPACE, pixel_size
from .model import (
    FIRST_FRAME,
    WEIGHT_DTYPES,
    check_size,
    is_kandinsky,
    load_model,
    makes_images_only,
    model_info,
    settings_for,
    space_name,
    to_model_space,
    to_vae_space,
)
from .plan import free_memory, make_job
from .run import set_conditioning
from .sampling import sample_latents, sampling_shift
from .text import TASKS, encode_text, load_text_encoders
from .vae import decode_frames, encode_images, load_vae

__all__ = [
    "FIRST_FRAME",
    "NANO",
    "SPACE",
    "TASKS",
    "WEIGHT_DTYPES",
    "AttentionChoice",
    "Folder",
    "check_size",
    "choices",
    "decode_frames",
    "encode_images",
    "encode_text",
    "free_memory",
    "is_kandinsky",
    "load_model",
    "load_text_encoders",
    "load_vae",
    "locate",
    "make_job",
    "makes_images_only",
    "measure_ratios",
    "model_info",
    "pixel_size",
    "ratio_names",
    "ratios_path",
    "sample_latents",
    "sampling_shift",
    "set_conditioning",
    "settings_for",
    "space_name",
    "to_model_space",
    "to_vae_space",
    "with_attention",
    "with_foreign_nabla",
    "with_magcache",
    "with_watch",
]
