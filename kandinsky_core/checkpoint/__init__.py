"""Weight files: what they are, loading them, saving them."""

from .header import read_header, weight_files
from .identify import describe_metadata, identify
from .info import NEEDS, CheckpointInfo
from .load import (
    Checkpoint,
    assign_weights,
    load_text_encoder_nano,
    load_transformer,
    load_vae,
    open_checkpoint,
)
from .save import save_checkpoint

__all__ = [
    "NEEDS",
    "Checkpoint",
    "CheckpointInfo",
    "assign_weights",
    "describe_metadata",
    "identify",
    "load_text_encoder_nano",
    "load_transformer",
    "load_vae",
    "open_checkpoint",
    "read_header",
    "save_checkpoint",
    "weight_files",
]
