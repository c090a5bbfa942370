"""Files of tensors, whatever their format: headers, and tensors read and unpacked one by one."""

from __future__ import annotations

from .entry import TensorEntry
from .gguf_file import ARCHITECTURE, projector
from .header import Component, Header, read_header, weight_files
from .mmproj import QwenHeader, mmproj_files, read_qwen_header
from .packed import PACKINGS, pack_q8_0, unpack
from .packed_layers import (
    PackedEmbedding,
    PackedLinear,
    PackedWeight,
    hold_instead,
    packed_names,
)
from .reader import WeightFiles
from .scaled import main_dtype, precision_name, split_scales

__all__ = [
    "ARCHITECTURE",
    "PACKINGS",
    "Component",
    "Header",
    "PackedEmbedding",
    "PackedLinear",
    "PackedWeight",
    "QwenHeader",
    "TensorEntry",
    "WeightFiles",
    "hold_instead",
    "main_dtype",
    "mmproj_files",
    "pack_q8_0",
    "packed_names",
    "precision_name",
    "projector",
    "read_header",
    "read_qwen_header",
    "split_scales",
    "unpack",
    "weight_files",
]
