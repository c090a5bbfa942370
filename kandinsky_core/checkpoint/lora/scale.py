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

ADAPTER_FILE, ADAPTER_CONFIG = "adapter_model.safetensors", "adapter_config.json"
"""What PEFT calls a folder's two files."""
DIFFUSERS_KEY = "lora_adapter_metadata"
"""Metadata entry of Diffusers: a LoraConfig as JSON, each name after the part's prefix."""
KOHYA_ALPHA = "ss_network_alpha"
"""Metadata entry of kohya's trainers: one alpha for all layers."""
NOT_STATED = "not stated, taken as the rank"


@dataclass(frozen=True)
class AlphaRule:
    """What a file's surroundings say of alpha, for layers that have none of their own."""

    source: str = NOT_STATED
    """Where it comes from, for readers."""
    rank: int | None = None
    """Rank it was stated for; None where that was not said."""
    alpha: float | None = None
    """None means the rank, so that nothing is scaled."""
    rank_pattern: Mapping[str, int] = field(default_factory=dict)
    """Regular expression of layer names -> their rank."""
    alpha_pattern: Mapping[str, float] = field(default_factory=dict)
    """Regular expression of layer names -> their alpha."""
    rank_stabilized: bool = False
    """Divide by the root of the rank (rsLoRA)."""

    def scale(self, module: str, rank: int) -> float:
        """Factor of a layer's product.

        Args:
            module: The layer's name.
            rank: Of its matrices.

        Raises:
            ValueError: The rule was stated for another rank, so it belongs to another file.
        """
        stated = _by_pattern(self.rank_pattern, module, self.rank)
        if stated is not None and stated != rank:
            raise ValueError(f"it says rank {stated} for {module}, where the matrices have {rank}")
        alpha = _by_pattern(self.alpha_pattern, module, self.alpha)
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
    """Where the configuration of a file that we write belongs."""
    own = ADAPTER_CONFIG if file.name == ADAPTER_FILE else f"{file.stem}.json"
    return file.with_name(own)


def config_beside(file: Path) -> Path | None:
    """The JSON configuration of a LoRA, or None.

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
        for pattern in (*patterns[0], *patterns[1]):
            re.compile(pattern)
        return AlphaRule(
            source=source,
            rank=int(stated["r"]) if "r" in stated else None,
            alpha=float(stated["lora_alpha"]),
            rank_pattern={key: int(value) for key, value in patterns[0].items()},
            alpha_pattern={key: float(value) for key, value in patterns[1].items()},
            rank_stabilized=bool(stated.get("use_rslora")),
        )
    except (ValueError, TypeError, AttributeError, re.error) as error:
        if isinstance(error, CheckpointError):
            raise
        raise CheckpointError(
            f"{file} cannot be scaled: {source} is no configuration of a LoRA ({error}); "
            "download it again, or take it away to use the LoRA unscaled."
        ) from error


def _by_pattern(patterns: Mapping[str, Any], module: str, default: Any) -> Any:
    """The entry of the first pattern that matches the end of a name, as PEFT chooses it."""
    for pattern, value in patterns.items():
        if re.fullmatch(rf"(?:.*\.)?(?:{pattern})", module):
            return value
    return default
