"""What is known of a checkpoint, and how to say it."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from ..family.config import DiTConfig, ImageVAEConfig, NanoTextConfig, VideoVAEConfig
from ..family.settings import Release, SamplingSettings, Stage, Task, tasks_of
from ..weights import Component, Header
from .families import QWEN_TEXT, QWEN_VISION, Family

Config = DiTConfig | VideoVAEConfig | ImageVAEConfig | NanoTextConfig

NEEDS = {
    "video_lite": "text encoders Qwen2.5-VL-7B and CLIP ViT-L/14, HunyuanVideo's VAE",
    "video_pro": "text encoders Qwen2.5-VL-7B and CLIP ViT-L/14, HunyuanVideo's VAE",
    "image_lite": "text encoders Qwen2.5-VL-7B and CLIP ViT-L/14, FLUX.1's VAE",
    "image_edit": "text encoders Qwen2.5-VL-7B and CLIP ViT-L/14, FLUX.1's VAE",
    "nano": "nano's text encoder and VAE, which come with this package",
}
"""Variant -> the other parts that a transformer works with, in words."""

_BESIDE = {
    QWEN_TEXT: "for image editing its vision tower: a GGUF file mmproj-... in the same folder",
    QWEN_VISION: "the language model of Qwen2.5-VL, a GGUF file in the same folder",
}
"""Half of a text encoder -> where the other half is looked for."""


@dataclass(frozen=True)
class CheckpointInfo:
    """What a file or folder of weights is."""

    path: Path
    """What the user gave."""
    kind: Component
    """Part of a model."""
    variant: str
    """Row of `variants.py` (transformer or VAE), "custom", or a text encoder's name."""
    config: Config | None
    """Dimensions; None for the large text encoders, which bring their own."""
    release: Release | None
    """Variant, task, clip length and stage of a transformer; None for other parts."""
    settings: SamplingSettings | None
    """How to sample with a transformer."""
    dtype: torch.dtype
    """What most of the weights are read as."""
    precision: str
    """How most of them are stored, e.g. "bfloat16", "fp8 scaled (float8_e4m3fn)", "GGUF Q4_K"."""
    num_parameters: int
    """Elements of all weights under the prefix."""
    family: Family
    """Names of the tensors: their prefix, and a VAE's layout."""
    header: Header = field(repr=False)
    """The file's header."""
    stated_tasks: tuple[Task, ...] = ()
    """Tasks that the file's own metadata lists."""
    sources: Mapping[str, str] = field(default_factory=dict)
    """Fact -> where it comes from: the weights, metadata, a name, or a default."""

    @property
    def prefix(self) -> str:
        """What stands before the network's own names in the file."""
        return self.family.prefix

    @property
    def layout(self) -> str:
        """Naming of the tensors, "diffusers" or "original"."""
        return self.family.vae_layout.naming if self.family.vae_layout else "diffusers"

    @property
    def task(self) -> Task | None:
        """What a transformer is for."""
        return self.release.task if self.release else None

    @property
    def seconds(self) -> int | None:
        """Clip length of a released video transformer."""
        return self.release.seconds if self.release else None

    @property
    def stage(self) -> Stage | None:
        """Training stage of a transformer."""
        return self.release.stage if self.release else None

    @property
    def tasks(self) -> tuple[Task, ...]:
        """What the file says, else what transformers of its task are for; see `tasks_of`."""
        if self.release is None:
            return ()
        if self.stated_tasks:
            return self.stated_tasks
        return tasks_of(self.release, is_known=self.sources.get("task") != "default")

    @property
    def main_task(self) -> Task:
        """What a transformer is for, among what it can make."""
        return self.task if self.task in self.tasks else self.tasks[0]

    @property
    def packed_bits(self) -> float | None:
        """Bits of a weight, on average, where matrices of a GGUF file stay packed, else None."""
        entries = [
            entry for name, entry in self.header.tensors.items() if name.startswith(self.prefix)
        ]
        if not any(entry.packing for entry in entries):
            return None
        return 8 * sum(entry.bytes_as(self.dtype) for entry in entries) / self.num_parameters

    def to_dict(self) -> dict[str, Any]:
        """Return the same facts as plain values, for JSON."""
        return {
            "path": str(self.path),
            "kind": self.kind,
            "variant": self.variant,
            "layout": self.layout,
            "prefix": self.prefix,
            "dtype": str(self.dtype).removeprefix("torch."),
            "precision": self.precision,
            "num_parameters": self.num_parameters,
            "task": self.task,
            "tasks": list(self.tasks),
            "seconds": self.seconds,
            "stage": self.stage,
            "config": asdict(self.config) if self.config else None,
            "settings": asdict(self.settings) if self.settings else None,
            "sources": dict(self.sources),
        }

    def describe(self) -> str:
        """Return several lines for a reader: what it is, how that is known, what it needs."""
        count, unit = self.num_parameters / 1e9, "billion"
        if count < 0.1:
            count, unit = count * 1000, "million"
        kind = self.kind.replace("_", " ")
        naming = f"{self.layout} names" + (f" under {self.prefix!r}" if self.prefix else "")
        lines = [
            str(self.path),
            f"  {self.variant} {kind}, {count:.3g} {unit} parameters in {self.precision}, {naming}",
        ]
        for name in ("task", "seconds", "stage"):
            if getattr(self, name) is not None:
                lines.append(f"  {name} {getattr(self, name)} ({self.sources[name]})")
        if isinstance(self.config, VideoVAEConfig | ImageVAEConfig):
            lines.append(f"  {_describe_compression(self.config)}")
        classes = [self.settings] if self.settings else []
        while classes and classes[-1].larger:
            classes.append(classes[-1].larger)
        lines += [f"  {_describe_settings(settings)}" for settings in classes]
        if self.variant in NEEDS and self.kind == "transformer":
            lines.append(f"  needs {NEEDS[self.variant]}")
        if self.variant in _BESIDE:
            lines.append(f"  needs {_BESIDE[self.variant]}")
        return "\n".join(lines)


def _describe_compression(config: VideoVAEConfig | ImageVAEConfig) -> str:
    side = config.spatial_compression
    cell = f"{side}x{side} pixels"
    if isinstance(config, VideoVAEConfig):
        cell += f" x {config.temporal_compression} frames"
    return (
        f"{cell} to {config.latent_channels} channels, shift {config.shift_factor:g} "
        f"and scale {config.scaling_factor:g}"
    )


def _describe_settings(settings: SamplingSettings) -> str:
    sizes = _either(f"{height}x{width}" for height, width in settings.sizes)
    attention = settings.attention
    if attention == "nabla":
        attention = f"NABLA attention with P {settings.nabla_p:g}"
    else:
        attention = "dense attention"
    rope = ", ".join(f"{scale:g}" for scale in settings.rope_scale)
    frames = ""
    if settings.frame_choices != (1,):
        frames = f", {_either(map(str, settings.frame_choices))} frames at {settings.fps} fps"
    return (
        f"made for {sizes} (height x width){frames}: {settings.num_steps} steps, guidance "
        f"{settings.guidance_scale:g}, shift {settings.shift:g}, RoPE scale ({rope}), {attention}"
    )


def _either(words: Iterable[str]) -> str:
    *others, last = words
    return f"{', '.join(others)} or {last}" if others else last


def facts_in_name(name: str) -> dict[str, str | int]:
    """Read task, seconds and stage off the name of a file or folder.

    Args:
        name: E.g. "kandinsky5lite_t2v_distilled16steps_10s" or
            "Kandinsky-5.0-T2V-Pro-sft-5s-Diffusers".

    Returns:
        Those of "task", "seconds" and "stage" that the name tells.
    """
    name = name.lower()
    facts: dict[str, str | int] = {}
    if match := re.search(r"(?<![a-z0-9])([ti]2[vi])(?![a-z0-9])", name):
        facts["task"] = match[1]
    if match := re.search(r"(?<![a-z0-9])(\d+)s(?![a-z0-9])", name):
        facts["seconds"] = int(match[1])
    for mark, stage in (
        ("distil", "distilled"),
        ("nocfg", "nocfg"),
        ("pretrain", "pretrain"),
        ("sft", "sft"),
    ):
        if mark in name:
            facts["stage"] = stage
            break
    return facts
