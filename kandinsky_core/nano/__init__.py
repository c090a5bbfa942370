"""The nano family: small weights that come with the package."""

from __future__ import annotations

from pathlib import Path

from ..errors import CheckpointError
from ..weights import Component


def nano_path(component: Component) -> Path:
    """File of a bundled part: "transformer", "vae" or "text_encoder".

    Raises:
        CheckpointError: This installation lacks it.
    """
    path = Path(__file__).with_name(f"{component}.safetensors")
    if not path.is_file():
        raise CheckpointError(
            f"the bundled nano {component.replace('_', ' ')} is missing ({path}): reinstall the "
            "package, or train it with kandinsky_core.training."
        )
    return path
