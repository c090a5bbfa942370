"""ComfyUI workflows as data: other packs' and ComfyUI's own Kandinsky 5 nodes onto ours."""

from .command import add_command as add_convert
from .convert import Conversion, Report, convert_file, convert_workflow

__all__ = ["Conversion", "Report", "add_convert", "convert_file", "convert_workflow"]
