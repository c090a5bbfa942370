"""ComfyUI workflows as data: other packs' and ComfyUI's own Kandinsky 5 nodes onto ours."""

from .convert import Conversion, Report, convert_file, convert_workflow

__all__ = ["Conversion", "Report", "convert_file", "convert_workflow"]
