"""Weight files: what they are, loading them, saving them."""

from .identify import describe_metadata, identify
from .info import CheckpointInfo
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
    "Checkpoint",
    "CheckpointInfo",
    "assign_weights",
    "describe_metadata",
    "identify",
    "load_text_encoder_nano",
    "load_transformer",
    "load_vae",
    "open_checkpoint",
    "save_checkpoint",
]
