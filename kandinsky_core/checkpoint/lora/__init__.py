"""LoRAs: read, scaled, matched to a network, merged, saved, whatever style they are in."""

from .apply import (
    LoraMatch,
    fitting_variants,
    layer_shapes,
    match_lora,
    merge_loras,
    name_layers,
)
from .read import Lora, LoraPair, read_lora
from .save import SavedStyle, lora_tensors, save_lora

__all__ = [
    "Lora",
    "LoraMatch",
    "LoraPair",
    "SavedStyle",
    "fitting_variants",
    "layer_shapes",
    "lora_tensors",
    "match_lora",
    "merge_loras",
    "name_layers",
    "read_lora",
    "save_lora",
]
