"""By how much a LoRA's product of matrices is multiplied: alpha over rank, and who states alpha.

Kohya's files hold an alpha for each layer as a tensor. PEFT and Diffusers keep it outside the
tensors: in adapter_config.json beside the file, or as JSON in the file's metadata. Source of the
rules: PEFT's LoraConfig and Diffusers' `lora_adapter_metadata`.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ...errors import CheckpointError
from .names import PREFIXES

_LAYER_PATTERN = re.compile(r"\^?(?P<name>\w[\w.-]*(?:\\\.[\w.-]+)*)\$?")
"""What PEFT writes for a layer: the end of its name, after ^ all of it, dots escaped or not."""
_MOST_PARTS = 64
"""Parts between dots at the end of a layer's name among which one is looked up."""

ADAPTER_FILE, ADAPTER_CONFIG = "adapter_model.safetensors", "adapter_config.json"
"""What PEFT calls a folder's two files."""
DIFFUSERS_KEY = "lora_adapter_metadata"
"""Metadata entry of Diffusers: a LoraConfig as JSON, each name after the part's prefix."""
KOHYA_ALPHA = "ss_network_alpha"
"""Metadata entry of kohya's trainers: one alpha for all layers."""
NOT_STATED = "not stated, taken as the rank"


class _ExpressionError(ValueError):
    """A pattern that is more than the name of a layer."""


class Layers:
    """Numbers of single layers, by names as PEFT's `rank_pattern` and `alpha_pattern` have them.

    Differs: PEFT runs these names as regular expressions. A file from elsewhere could hold the
    interpreter with one for as long as it likes, so here they are names, and others are refused.
    """

    def __init__(self, stated: Mapping[str, Any]) -> None:
        """Read an entry of a LoraConfig.

        Args:
            stated: Name, or the end of one from a dot on; after ^ the whole name -> number.

        Raises:
            ValueError: A name is an expression, or its value no number.
        """
        self._ends: dict[str, tuple[int, float]] = {}
        self._whole: dict[str, tuple[int, float]] = {}
        for place, (pattern, value) in enumerate(stated.items()):
            match = _LAYER_PATTERN.fullmatch(pattern)
            if match is None:
                raise _ExpressionError(pattern)
            known = self._whole if pattern.startswith("^") else self._ends
            known.setdefault(match["name"].replace("\\.", "."), (place, float(value)))

    def get(self, module: str) -> float | None:
        """Return the number of a layer, None where there is none; the first of several as in
        PEFT."""
        found = [self._whole[module]] if module in self._whole else []
        end = len(module)
        for _ in range(_MOST_PARTS if self._ends else 0):
            dot = module.rfind(".", 0, end)
            if (name := module[dot + 1 :]) in self._ends:
                found.append(self._ends[name])
            if dot < 0:
                break
            end = dot
        return min(found)[1] if found else None


@dataclass(frozen=True)
class AlphaRule:
    """What a file's surroundings say of alpha, for layers that have none of their own."""

    source: str = NOT_STATED
    """Where it comes from, for readers."""
    rank: int | None = None
    """Rank it was stated for; None where that was not said."""
    alpha: float | None = None
    """None means the rank, so that nothing is scaled."""
    rank_pattern: Layers = field(default_factory=lambda: Layers({}))
    """Layers whose rank is another."""
    alpha_pattern: Layers = field(default_factory=lambda: Layers({}))
    """Layers whose alpha is another."""
    rank_stabilized: bool = False
    """Divide by the root of the rank (rsLoRA)."""

    def scale(self, module: str, rank: int) -> float:
        """Return the factor of a layer's product.

        Args:
            module: The layer's name.
            rank: Of its matrices.

        Raises:
            ValueError: The rule was stated for another rank, so it belongs to another file.
        """
        stated = self.rank_pattern.get(module)
        stated = self.rank if stated is None else stated
        if stated is not None and stated != rank:
            raise ValueError(
                f"it says rank {stated:g} for {module}, where the matrices have {rank}"
            )
        alpha = self.alpha_pattern.get(module)
        alpha = self.alpha if alpha is None else alpha
        if alpha is None:
            return 1.0
        return alpha / (math.sqrt(rank) if self.rank_stabilized else rank)


def read_alpha_rule(file: Path, metadata: Mapping[str, str]) -> AlphaRule:
    """Find what is said about alpha outside a LoRA's tensors.

    Args:
        file: The .safetensors file.
        metadata: The file's own.

    Returns:
        The first of: the file's metadata, a JSON configuration beside it, nothing.

    Raises:
        CheckpointError: What is said cannot be read, or is about another kind of adapter.
    """
    if DIFFUSERS_KEY in metadata:
        return _parse(file, DIFFUSERS_KEY + " in its metadata", metadata[DIFFUSERS_KEY])
    if KOHYA_ALPHA in metadata:
        return _parse(
            file, KOHYA_ALPHA + " in its metadata", f'{{"lora_alpha": {metadata[KOHYA_ALPHA]}}}'
        )
    config = config_beside(file)
    if config is None:
        return AlphaRule()
    try:
        text = config.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise CheckpointError(f"{config} cannot be read ({error}): download it again.") from error
    return _parse(file, config.name, text)


def config_path(file: Path) -> Path:
    """Return where the configuration of a file that we write belongs."""
    own = ADAPTER_CONFIG if file.name == ADAPTER_FILE else f"{file.stem}.json"
    return file.with_name(own)


def config_beside(file: Path) -> Path | None:
    """Return the JSON configuration of a LoRA, or None.

    A folder's adapter_config.json speaks for a file of another name only if that file is alone
    there: a folder of many LoRAs may hold the configuration of any of them.
    """
    if config_path(file).is_file():
        return config_path(file)
    shared = file.with_name(ADAPTER_CONFIG)
    if shared.is_file() and len(list(file.parent.glob("*.safetensors"))) == 1:
        return shared
    return None


def _parse(file: Path, source: str, text: str) -> AlphaRule:
    """Read a LoraConfig; other JSON beside a file (a sidecar of a download) says nothing."""
    try:
        stated: dict[str, Any] = {
            name.removeprefix(PREFIXES["diffusers"]): value
            for name, value in json.loads(text).items()
        }
        if stated.get("use_dora"):
            raise CheckpointError(
                f"{file} is a DoRA by {source}, which is not supported: use a plain LoRA."
            )
        if "lora_alpha" not in stated:
            return AlphaRule()
        patterns = [stated.get(name) or {} for name in ("rank_pattern", "alpha_pattern")]
        return AlphaRule(
            source=source,
            rank=int(stated["r"]) if "r" in stated else None,
            alpha=float(stated["lora_alpha"]),
            rank_pattern=Layers(patterns[0]),
            alpha_pattern=Layers(patterns[1]),
            rank_stabilized=bool(stated.get("use_rslora")),
        )
    except _ExpressionError as error:
        raise CheckpointError(
            f"{file} cannot be scaled: expected names of layers in rank_pattern and alpha_pattern "
            f"of {source}, found the expression {str(error)[:60]!r}, and expressions of a file are "
            "not run; write the layers' names in its place."
        ) from error
    except (ValueError, TypeError, AttributeError, OverflowError, RecursionError) as error:
        if isinstance(error, CheckpointError):
            raise
        raise CheckpointError(
            f"{file} cannot be scaled: {source} is no configuration of a LoRA ({error}); "
            "download it again, or take it away to use the LoRA unscaled."
        ) from error
