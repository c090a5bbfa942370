"""Qwen2.5-VL in two GGUF files, the language model and the vision tower, as llama.cpp keeps it.

The tower's file is named mmproj-... by custom and has no link to the language model but that they
are downloaded together. So it is looked for beside the language model, and taken where exactly one
fits: its projector is Qwen2.5-VL's, it is whole, and its tokens are as wide as the model's.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from ..errors import CheckpointError
from .gguf_file import (
    ARCHITECTURE,
    QWEN_ARCHITECTURE,
    QWEN_PROJECTOR,
    VISION_ARCHITECTURE,
    projector,
)
from .header import Header, is_mmproj, read_header
from .llama_names import VISION

_EXAMPLE = "mmproj-Qwen2.5-VL-7B-Instruct-f16.gguf"
"""The name of such a file, for messages."""

_KERNEL = (3, 2, 14, 14)  # colours, frames, pixels: the same in every Qwen2.5-VL
_MERGED = 4  # patches that become one token
_EMBED = f"{VISION}patch_embed.proj.weight"
_GATE = VISION + "blocks.{}.mlp.gate_proj.weight"
_OUT = f"{VISION}merger.mlp.2.weight"


@dataclass(frozen=True)
class QwenHeader(Header):
    """All tensors of Qwen2.5-VL, its vision tower included where there is one."""

    vision_path: Path | None = None
    """The file of the vision tower where that is a file of its own."""
    why_blind: str = ""
    """Why there is no vision tower and what to do, a clause; empty where there is one."""

    @property
    def label(self) -> str:
        """The files' names, for messages."""
        beside = f" with {self.vision_path.name}" if self.vision_path else ""
        return f"{self.path}{beside}"


def read_qwen_header(path: str | Path) -> QwenHeader:
    """Read the header of Qwen2.5-VL, and of the vision tower that lies beside a GGUF file.

    Args:
        path: What `read_header` takes, of the language model or of the whole model.

    Returns:
        The entries of both under transformers' names.

    Raises:
        CheckpointError: There is no such file, it is damaged, or it is a vision tower itself. A
            vision tower beside it that cannot be used is no error: `why_blind` tells.
        MissingExtraError: It is a GGUF file, and the package gguf is not installed.
    """
    header = read_header(path, "text_encoder")
    architecture = header.metadata.get(ARCHITECTURE)
    if architecture == VISION_ARCHITECTURE:
        raise CheckpointError(
            f"{path} is {_describe_tower(header.metadata)}: give the language model of Qwen2.5-VL; "
            "its vision tower is taken from the same folder."
        )
    norm = header.tensors.get("model.norm.weight")
    if architecture != QWEN_ARCHITECTURE or norm is None:
        sees = any(f"{VISION}blocks." in name for name in header.tensors)
        why = "" if sees else "its file has none; load a file of the whole model"
        return QwenHeader(header.path, header.tensors, header.metadata, None, why)
    tower, why = _find_tower(norm.file, norm.shape[0])
    if tower is None:
        return QwenHeader(header.path, header.tensors, header.metadata, None, why)
    tensors = {**header.tensors, **tower.tensors}
    return QwenHeader(header.path, tensors, header.metadata, tower.path)


def _describe_tower(metadata: Mapping[str, str]) -> str:
    """Return what a file of the architecture "clip" is, with its article."""
    named = projector(metadata)
    if named == QWEN_PROJECTOR:
        return "the vision tower (mmproj) of Qwen2.5-VL"
    said = f"projector {named!r}" if named else "it states no projector"
    return f"the vision tower (mmproj) of another model than Qwen2.5-VL ({said})"


def mmproj_files(path: Path) -> list[Path]:
    """Return the files named as vision towers beside a GGUF file, or in a folder; others have
    none."""
    folder = path if path.is_dir() else path.parent
    beside = path.is_dir() or path.suffix == ".gguf"
    return sorted(file for file in folder.iterdir() if is_mmproj(file)) if beside else []


def _find_tower(file: Path, width: int) -> tuple[Header | None, str]:
    """Return the one vision tower beside a language model that fits its width, or why there is
    none."""
    fitting: list[Header] = []
    misfits: list[str] = []
    for candidate in mmproj_files(file):
        try:
            tower = read_header(candidate)
        except CheckpointError as error:
            misfits.append(str(error).rstrip("."))
            continue
        if misfit := _misfit(tower, width):
            misfits.append(f"{candidate.name} {misfit}")
        else:
            fitting.append(tower)
    if len(fitting) == 1:
        return fitting[0], ""
    if fitting:
        names = ", ".join(tower.path.name for tower in fitting)
        return None, f"{len(fitting)} mmproj files fit it ({names}); leave one in {file.parent}"
    found = "; ".join(misfits[:3]) or f"{file.name} is the language model alone"
    return None, (
        f"{found}; put its mmproj file (for the 7B model e.g. {_EXAMPLE}) into {file.parent} "
        "and load it again, or load the whole model from a .safetensors file"
    )


def _misfit(tower: Header, text_width: int) -> str | None:
    """Return what is wrong with a vision tower for a language model of this width, or None."""
    architecture = tower.metadata.get(ARCHITECTURE)
    if architecture != VISION_ARCHITECTURE:
        return f"is no vision tower (GGUF architecture {architecture!r}) whatever its name"
    if projector(tower.metadata) != QWEN_PROJECTOR:
        return f"is {_describe_tower(tower.metadata)}"
    shapes = {name: entry.shape for name, entry in tower.tensors.items()}
    first = (_EMBED, _GATE.format(0), _OUT)
    lost = [name for name in first if not shapes.get(name)]
    expected: dict[str, tuple[int, ...]] = {}
    if not lost:
        width, inner, out = (shapes[name][0] for name in first)
        expected = _expected_shapes(width, inner, out, shapes)
        lost = sorted(expected.keys() - shapes.keys())
    if lost:
        return (
            f"lacks {len(lost)} of the vision tower's tensors, first {lost[0]} (download it again)"
        )
    if extra := sorted(shapes.keys() - expected.keys()):
        return f"holds {len(extra)} tensors that Qwen2.5-VL's tower has not, first {extra[0]}"
    for name, shape in expected.items():
        if shapes[name] != shape:
            return f"has {name} of shape {shapes[name]} (expected {shape})"
    if shapes[_OUT][0] != text_width:
        return (
            f"is for a language model of width {shapes[_OUT][0]}, and this one has {text_width} "
            "(another size of Qwen2.5-VL)"
        )
    return None


def _expected_shapes(
    width: int, inner: int, out: int, shapes: Mapping[str, tuple[int, ...]]
) -> dict[str, tuple[int, ...]]:
    """Name -> shape of a whole tower of these sizes, with as many blocks as there are."""
    start = f"{VISION}blocks."
    there = {name.removeprefix(start).split(".")[0] for name in shapes if name.startswith(start)}
    depth = next(number for number in range(len(there) + 1) if str(number) not in there)
    merged = _MERGED * width
    block = {
        "norm1.weight": (width,),
        "attn.qkv.weight": (3 * width, width),
        "attn.qkv.bias": (3 * width,),
        "attn.proj.weight": (width, width),
        "attn.proj.bias": (width,),
        "norm2.weight": (width,),
        "mlp.gate_proj.weight": (inner, width),
        "mlp.gate_proj.bias": (inner,),
        "mlp.up_proj.weight": (inner, width),
        "mlp.up_proj.bias": (inner,),
        "mlp.down_proj.weight": (width, inner),
        "mlp.down_proj.bias": (width,),
    }
    return {
        _EMBED: (width, *_KERNEL),
        **{
            f"{VISION}blocks.{i}.{name}": shape
            for i in range(depth)
            for name, shape in block.items()
        },
        f"{VISION}merger.ln_q.weight": (width,),
        f"{VISION}merger.mlp.0.weight": (merged, merged),
        f"{VISION}merger.mlp.0.bias": (merged,),
        _OUT: (out, merged),
        f"{VISION}merger.mlp.2.bias": (out,),
    }
