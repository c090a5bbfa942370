"""Frames in and out: videos, images, contact sheets."""

from .drift import ColorDrift, color_drift
from .image import (
    contact_sheet,
    read_image,
    read_image_metadata,
    write_contact_sheet,
    write_image,
)
from .io import Clip, read_video, write_video
from .metadata import describe_texts, read_metadata
from .pixels import Frames, cover, to_pixels, to_uint8

__all__ = [
    "Clip",
    "ColorDrift",
    "Frames",
    "color_drift",
    "contact_sheet",
    "cover",
    "describe_texts",
    "read_image",
    "read_image_metadata",
    "read_metadata",
    "read_video",
    "to_pixels",
    "to_uint8",
    "write_contact_sheet",
    "write_image",
    "write_video",
]
