"""Write a LoRA in the style that another program reads."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from ...files import write_text
from ..save import save_checkpoint
from .names import PREFIXES
from .read import TRIGGER_KEY, LoraPair
from .scale import DIFFUSERS_KEY, config_path

SavedStyle = Literal["comfyui", "diffusers", "peft"]
"""ComfyUI's LoRA loaders read the first, Diffusers' `load_lora_weights` the second, PEFT and the
official pipelines the third."""

_OF_ITS_STYLE = (DIFFUSERS_KEY, "ss_network_", "sshs_", "modelspec.hash")


def save_lora(
    path: str | Path,
    pairs: Mapping[str, LoraPair],
    style: SavedStyle,
    *,
    trigger: str = "",
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Write a LoRA atomically; of PEFT's style with its JSON configuration beside it.

    Args:
        path: Where to write.
        pairs: Layer of a CrossDiT -> what is added to it.
        style: How tensors are named.
        trigger: Text that belongs before the prompt.
        metadata: Kept, apart from what described the style of the file it comes from.

    Raises:
        OutputError: The folder does not exist, is not writable, or has no room.
    """
    path = Path(path)
    kept = {k: v for k, v in (metadata or {}).items() if not k.startswith(_OF_ITS_STYLE)}
    if trigger:
        kept[TRIGGER_KEY] = trigger
    if style != "comfyui":
        prefix = PREFIXES[style] if style == "diffusers" else ""
        stated = {prefix + name: value for name, value in _peft_config(pairs).items()}
        kept[DIFFUSERS_KEY] = json.dumps(stated)
    save_checkpoint(path, lora_tensors(pairs, style), kept)
    if style == "peft":
        write_text(config_path(path), json.dumps(_peft_config(pairs), indent=2))


def lora_tensors(pairs: Mapping[str, LoraPair], style: SavedStyle) -> dict[str, Tensor]:
    """Name the tensors of a LoRA.

    ComfyUI reads an alpha for each layer. The other styles keep alpha outside the tensors, where
    it gets lost; there the scale is multiplied into `up`, and alpha is the rank.

    Args:
        pairs: Layer of a CrossDiT -> what is added to it.
        style: How tensors are named.

    Returns:
        What a file of that style holds.
    """
    tensors: dict[str, Tensor] = {}
    for module, pair in pairs.items():
        name = PREFIXES[style] + module
        if style == "comfyui":
            tensors[f"{name}.lora_down.weight"] = pair.down
            tensors[f"{name}.lora_up.weight"] = pair.up
            tensors[f"{name}.alpha"] = torch.tensor(pair.scale * pair.rank)
        else:
            tensors[f"{name}.lora_A.weight"] = pair.down
            tensors[f"{name}.lora_B.weight"] = _scaled(pair)
    return tensors


def _scaled(pair: LoraPair) -> Tensor:
    """Return `up` times the scale, in its own dtype where that loses nothing, else in fp32."""
    scaled = pair.up.float() * pair.scale
    rounded = scaled.to(pair.up.dtype)
    return rounded if torch.equal(rounded.float(), scaled) else scaled


def _peft_config(pairs: Mapping[str, LoraPair]) -> dict[str, Any]:
    """Return a LoraConfig that describes what `lora_tensors` makes."""
    (rank, _), *_ = Counter(pair.rank for pair in pairs.values()).most_common(1)
    others = {name: pair.rank for name, pair in pairs.items() if pair.rank != rank}
    return {
        "peft_type": "LORA",
        "r": rank,
        "lora_alpha": rank,
        "rank_pattern": others,
        "alpha_pattern": others,
        "target_modules": sorted(pairs),
        "lora_dropout": 0.0,
        "bias": "none",
        "use_rslora": False,
        "use_dora": False,
        "inference_mode": True,
    }
