"""What the tensors of a LoRA file are called, in the styles that its writers use.

A LoRA holds two small matrices for each linear layer it changes. Writers agree on that and on
little else: what stands before a layer's name, what the matrices are called, and, in kohya's and
musubi-tuner's files, whether the name keeps its dots.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Literal, NamedTuple

Style = Literal["peft", "diffusers", "comfyui", "kohya", "bare"]
Role = Literal["down", "up", "alpha"]

PREFIXES: dict[Style, str] = {
    "peft": "base_model.model.",
    "diffusers": "transformer.",
    "comfyui": "diffusion_model.",
    "kohya": "lora_unet_",
    "bare": "",
}
"""Style -> what stands before a layer's name; kohya's also has underscores in place of dots."""

_ROLES = re.compile(
    r"(?P<module>.+)\."
    r"(?:(?P<down>lora_A|lora_down)|(?P<up>lora_B|lora_up)|(?P<alpha>alpha))"
    r"(?:\.default)?(?:\.weight)?"
)

_OTHER_ADAPTERS: tuple[tuple[str, str], ...] = (
    (".lokr_", "a LoKr adapter"),
    (".hada_", "a LoHa adapter"),
    (".oft_", "an OFT adapter"),
    ("lora_magnitude_vector", "a DoRA"),
    (".dora_scale", "a DoRA"),
)


class TensorName(NamedTuple):
    """The name of a tensor of a LoRA, taken apart."""

    style: Style
    module: str
    """The layer's name without prefix; of kohya's style with underscores in place of dots."""
    role: Role
    """Which of the layer's tensors it is."""


def parse_name(name: str) -> TensorName | None:
    """Take a tensor's name apart; None where it is not part of a LoRA."""
    match = _ROLES.fullmatch(name)
    if match is None:
        return None
    (role,) = (role for role in ("down", "up", "alpha") if match[role])
    style, module = _strip_prefixes(match["module"])
    return TensorName(style, module, role)


def other_adapter(names: Iterable[str]) -> str | None:
    """Return what kind of adapter the names belong to if it is none that can be used, else None."""
    names = list(names)
    for mark, what in _OTHER_ADAPTERS:
        if any(mark in name for name in names):
            return what
    return None


def spellings(modules: Iterable[str]) -> dict[str, str]:
    """Return the names by which a LoRA may call modules -> the modules' own.

    Without its dots a name does not tell where they were, because `out_layer` has an underscore
    of its own; so it can only be looked up among the names that there are.

    Args:
        modules: Names of a network's layers.

    Returns:
        Each name, and each with underscores in place of its dots.
    """
    names = list(modules)
    return {name.replace(".", "_"): name for name in names} | {name: name for name in names}


def _strip_prefixes(name: str) -> tuple[Style, str]:
    """Return the style by the outermost prefix, and the name without any."""
    styles: list[Style] = []
    start = 0
    while found := next(
        (style for style, each in PREFIXES.items() if each and name.startswith(each, start)), None
    ):
        styles.append(found)
        start += len(PREFIXES[found])
    return (styles[0] if styles else "bare"), name[start:]
