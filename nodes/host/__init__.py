"""Everything that knows ComfyUI's internals: the only importer of comfy.* and folder_paths.

Written for ComfyUI 0.3.75 and later. What the node files need is listed here; the classes
behind it (MODEL, CLIP, VAE) are subclasses of ComfyUI's own, so native nodes take them.
"""

from __future__ import annotations

from .attention.choice import AttentionChoice, with_attention, with_watch
from .attention.foreign import with_foreign_nabla, without_foreign_nabla
from .files import (
    NANO,
    NANO_EDIT,
    Folder,
    choices,
    find_model,
    find_part,
    locate,
    ratio_names,
    ratios_path,
    temporary_file,
)
from .inputs import NO_FILE, fingerprint_input, input_texts, read_prompts
from .latents import SPACE, pixel_size
from .lora import with_lora, with_triggers
from .model.caching import measure_ratios, with_magcache
from .model.chosen import with_settings
from .model.conditions import FIRST_FRAME, LAST_FRAME, SOURCE, check_seen, task_of
from .model.load import WEIGHT_DTYPES, load_model
from .model.model import (
    check_size,
    is_kandinsky,
    makes_images_only,
    model_info,
    settings_for,
    space_name,
    to_model_space,
    to_vae_space,
)
from .model.native_blocks import with_native_blocks
from .model.sampling import native_sigmas, sample_latents, sampling_shift
from .model.typed import settle
from .plan import free_main_memory, free_memory, make_job
from .routes import add_routes
from .run import PROMPT, prompt_of, record, set_conditioning, show_text
from .text.clip import encode_text, fingerprint_vision, load_text_encoders
from .text.expand import expand_prompt
from .vae import (
    decode_frames,
    encode_clip,
    encode_first_frame,
    encode_images,
    encode_last_frame,
    load_vae,
)

__all__ = [
    "FIRST_FRAME",
    "LAST_FRAME",
    "NANO",
    "NANO_EDIT",
    "NO_FILE",
    "PROMPT",
    "SOURCE",
    "SPACE",
    "WEIGHT_DTYPES",
    "AttentionChoice",
    "Folder",
    "add_routes",
    "check_seen",
    "check_size",
    "choices",
    "decode_frames",
    "encode_clip",
    "encode_first_frame",
    "encode_images",
    "encode_last_frame",
    "encode_text",
    "expand_prompt",
    "find_model",
    "find_part",
    "fingerprint_input",
    "fingerprint_vision",
    "free_main_memory",
    "free_memory",
    "input_texts",
    "is_kandinsky",
    "load_model",
    "load_text_encoders",
    "load_vae",
    "locate",
    "make_job",
    "makes_images_only",
    "measure_ratios",
    "model_info",
    "native_sigmas",
    "pixel_size",
    "prompt_of",
    "ratio_names",
    "ratios_path",
    "read_prompts",
    "record",
    "sample_latents",
    "sampling_shift",
    "set_conditioning",
    "settings_for",
    "settle",
    "show_text",
    "space_name",
    "task_of",
    "temporary_file",
    "to_model_space",
    "to_vae_space",
    "with_attention",
    "with_foreign_nabla",
    "with_lora",
    "with_magcache",
    "with_native_blocks",
    "with_settings",
    "with_triggers",
    "with_watch",
    "without_foreign_nabla",
]
