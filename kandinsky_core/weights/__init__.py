"""Files of tensors, whatever their format: headers, and tensors read and unpacked one by one."""

from __future__ import annotations

from .entry import TensorEntry
from .gguf_file import ARCHITECTURE
from .header import Component, Header, read_header, weight_files
from .reader import WeightFiles
from .scaled import main_dtype, precision_name, split_scales

__all__ = [
    "ARCHITECTURE",
    "Component",
    "Header",
    "TensorEntry",
    "WeightFiles",
    "main_dtype",
    "precision_name",
    "read_header",
    "split_scales",
    "weight_files",
]
