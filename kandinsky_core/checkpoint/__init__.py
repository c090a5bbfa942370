"""Weight files: what they are, loading them, saving them."""

from .identification import describe_metadata, identify
from .info import NEEDS, CheckpointInfo, facts_in_name
from .load import (
    Checkpoint,
    assign_weights,
    load_text_encoder_nano,
    load_transformer,
    load_vae,
    open_checkpoint,
)
from .lora import (
    Lora,
    LoraMatch,
    LoraPair,
    SavedStyle,
    fitting_variants,
    layer_shapes,
    lora_tensors,
    match_lora,
    merge_loras,
    name_layers,
    read_lora,
    save_lora,
)
from .save import save_checkpoint

__all__ = [
    "NEEDS",
    "Checkpoint",
    "CheckpointInfo",
    "Lora",
    "LoraMatch",
    "LoraPair",
    "SavedStyle",
    "assign_weights",
    "describe_metadata",
    "facts_in_name",
    "fitting_variants",
    "identify",
    "layer_shapes",
    "load_text_encoder_nano",
    "load_transformer",
    "load_vae",
    "lora_tensors",
    "match_lora",
    "merge_loras",
    "name_layers",
    "open_checkpoint",
    "read_lora",
    "save_checkpoint",
    "save_lora",
]
