"""What a command line asks for, as frozen values: the rest of the commands sees nothing else."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ..generate import GenerateRequest


@dataclass(frozen=True)
class ModelParts:
    """Which weights, and what computes with them."""

    model: str = "nano"
    """"nano", "nano-edit", a file or a folder."""
    vae: Path | None = None
    """File of the VAE; None looks beside the model."""
    text_encoder: Path | None = None
    """Folder of the text encoders; None looks beside the model."""
    dtype: str | None = None
    """Of the weights, "fp32", "bf16" or "fp16"; None is as in the file."""
    device: str = "cpu"
    """Where everything runs."""
    loras: tuple[tuple[Path, float], ...] = ()
    """Files of LoRAs, each with its strength."""
    attention_backend: str = "auto"
    """What computes attention."""


@dataclass(frozen=True)
class Given:
    """Files that the model is shown."""

    image: Path | None = None
    """Picture to start from or to edit."""
    extend: Path | None = None
    """Video to go on from."""
    last_frame: Path | None = None
    """Picture to end in."""


@dataclass(frozen=True)
class Outputs:
    """Where results go."""

    output: Path | None = None
    """File of the result, or folder of a list's; None takes a name by the task."""
    sheet: Path | None = None
    """File of a contact sheet, if one is wanted."""
    vae_memory: int | None = None
    """Bytes that decoding may take; None leaves it to the VAE."""


@dataclass(frozen=True)
class Expansion:
    """How a prompt is written out in detail."""

    is_wanted: bool = False
    """Whether it is."""
    keep_language: bool = False
    """Whether in the language of the prompt; else in English."""
    max_tokens: int = 256
    """Most tokens to write."""
    temperature: float = 0.7
    """0 always takes the likeliest word, up to 2 is more varied."""


@dataclass(frozen=True)
class Caching:
    """Whether MagCache is on, and how."""

    is_wanted: bool = False
    """Whether it is."""
    threshold: float | None = None
    """Error that steps may add up before one is computed; None is the reference's."""
    ratios: Path | None = None
    """File that `calibrate` wrote; None takes those published for the checkpoint."""


@dataclass(frozen=True)
class Job:
    """One output: what to make, with what, and where it goes."""

    request: GenerateRequest
    """What to make; what is given is read into it when all that can be refused before has been."""
    model: ModelParts
    """With what."""
    given: Given = Given()
    """What it starts from and ends in."""
    outputs: Outputs = Outputs()
    """Where it goes."""
    expansion: Expansion = Expansion()
    """How its prompt is written out first."""
    caching: Caching = Caching()
    """What makes it faster."""
    place: str = ""
    """Where it stands in a list of prompts; empty for a single one."""
