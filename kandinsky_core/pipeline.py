"""The parts of one model, and how to load them together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from .attention import Attend, Nabla, attend
from .checkpoint import (
    CheckpointInfo,
    LoraMatch,
    identify,
    layer_shapes,
    load_text_encoder_nano,
    load_transformer,
    load_vae,
    match_lora,
    merge_loras,
    read_lora,
)
from .family.config import DiTConfig, ImageVAEConfig, VideoVAEConfig
from .family.settings import TASKS, SamplingSettings, Task
from .family.shapes import Geometry
from .family.variants import VAE_OF
from .models import CrossDiT, ImageVAE, VideoVAE
from .nano import NanoPart, nano_path
from .text import TextEncoder, load_qwen_clip_folder

NANO = "nano"
"""Name of the bundled model, and of its variant."""
BUNDLED: dict[str, NanoPart] = {NANO: "transformer", "nano-edit": "edit_transformer"}
"""Names of the bundled models -> their transformers."""


@dataclass(frozen=True)
class Pipeline:
    """The parts of one model."""

    transformer: CrossDiT
    text_encoder: TextEncoder
    vae: VideoVAE | ImageVAE
    settings: SamplingSettings
    """What the checkpoint was made for."""
    tasks: tuple[Task, ...] = TASKS
    """What it can make; other tasks are refused."""
    attend: Attend = attend
    """Backend of every attention of the transformer."""
    loras: tuple[LoraMatch, ...] = ()
    """What was added to the transformer."""

    @property
    def triggers(self) -> list[str]:
        """Texts that the LoRAs want before the prompt."""
        return [match.lora.trigger for match in self.loras if match.lora.trigger]

    @property
    def geometry(self) -> Geometry:
        """How this transformer and this VAE divide space and time, with dense attention."""
        return Geometry.of(self.transformer.config, self.vae.config)

    @property
    def device(self) -> torch.device:
        """Where the transformer is, and so where sampling runs."""
        return next(self.transformer.parameters()).device


def nabla_for(settings: SamplingSettings) -> Nabla | None:
    """Return the sparse attention that settings ask for; None where they ask for dense."""
    if settings.attention == "dense":
        return None
    return Nabla(settings.nabla_p, settings.tile_thw, settings.sta_window_thw)


def identify_model(model: str | Path = NANO) -> CheckpointInfo:
    """Say what `load_pipeline` would load, from the transformer's header alone.

    Args:
        model: "nano" or "nano-edit" for the bundled models, a Diffusers folder, or a
            transformer's file.

    Returns:
        What the transformer is.

    Raises:
        CheckpointError: There is no such model, or it is another.
    """
    bundled = BUNDLED.get(str(model))
    path = Path(model) if bundled is None else nano_path(bundled)
    return identify(path, component="transformer")


def load_pipeline(
    model: str | Path | CheckpointInfo = NANO,
    *,
    vae: str | Path | None = None,
    text_encoder: str | Path | None = None,
    dtype: torch.dtype | None = None,
    device: torch.device | str = "cpu",
    loras: Sequence[tuple[str | Path, float]] = (),
) -> Pipeline:
    """Load a transformer with the VAE and text encoder that belong to it.

    Args:
        model: "nano" or "nano-edit" for the bundled models, a Diffusers folder, or a
            transformer's file; or what `identify_model` said of it, and no header is read again.
        vae: File or folder of the VAE; needed where `model` is a single file, unless of nano.
        text_encoder: Folder with text_encoder, tokenizer, text_encoder_2 and tokenizer_2, or
            nano's file; needed where `model` is a single file, unless of nano.
        dtype: Of the weights; None keeps the files' for large models. Nano runs in fp32.
        device: Where everything runs; the large text encoder stays on the CPU in between.
        loras: Files of LoRAs to add to the transformer, each with its strength.

    Returns:
        The parts, ready for `generate`.

    Raises:
        ValueError: If a part is missing or does not belong to the model, or there is no such
            device.
        MissingExtraError: If the text encoder needs a package that is not installed.
    """
    _check_device(device)
    info = model if isinstance(model, CheckpointInfo) else identify_model(model)
    assert info.release is not None, "identify_model finds transformers only"
    assert info.settings is not None, info
    is_nano = info.release.variant == NANO
    if is_nano:
        vae = vae or nano_path("vae")
        text_encoder = text_encoder or nano_path("text_encoder")
        dtype = dtype or torch.float32
    else:
        vae = vae or _part(info.path, "vae", "--vae")
        text_encoder = text_encoder or _part(info.path, "text_encoder", "--text-encoder").parent
    vae_info = identify(vae, component="vae")
    _check_vae(info, vae_info)

    matches = _match_loras(info, [path for path, _ in loras])
    # whatever can be missing is looked for before the largest part is read
    encoder: TextEncoder
    if is_nano:
        encoder = load_text_encoder_nano(text_encoder, dtype=dtype, device=device)
    else:
        encoder = load_qwen_clip_folder(text_encoder, dtype=dtype, device=device, offload=True)
    loaded_vae = load_vae(vae_info, dtype=dtype, device=device)
    transformer, _ = load_transformer(info, dtype=dtype, device=device)
    merge_loras(transformer, zip(matches, (strength for _, strength in loras), strict=True))
    return Pipeline(
        transformer, encoder, loaded_vae, info.settings, info.tasks, loras=tuple(matches)
    )


def _match_loras(model: CheckpointInfo, paths: Sequence[str | Path]) -> list[LoraMatch]:
    """Read LoRAs and refuse those of another model, before the model itself is read."""
    if not paths:
        return []
    assert isinstance(model.config, DiTConfig), model
    shapes = layer_shapes(CrossDiT(model.config, device="meta"))
    return [match_lora(read_lora(path), shapes) for path in paths]


def _part(model: Path, name: str, option: str) -> Path:
    """Return the folder of a part inside a Diffusers folder."""
    part = model / name
    if not part.is_dir():
        raise ValueError(
            f"{model} holds no folder {name!r}: a transformer alone is not enough to generate; "
            f"give the {name.replace('_', ' ')} with {option}, or a whole Diffusers folder"
        )
    return part


def _check_vae(model: CheckpointInfo, vae: CheckpointInfo) -> None:
    """Refuse a VAE whose latents the transformer was not trained on."""
    wanted = VAE_OF.get(model.variant)
    if wanted is not None and vae.variant not in (wanted, "custom"):
        raise ValueError(
            f"{vae.path} is the {vae.variant} VAE and a {model.variant} model works with the "
            f"{wanted} VAE; load that one"
        )
    assert isinstance(model.config, DiTConfig), model
    assert isinstance(vae.config, VideoVAEConfig | ImageVAEConfig), vae
    if vae.config.latent_channels != model.config.latent_channels:
        raise ValueError(
            f"{vae.path} has {vae.config.latent_channels} latent channels and the transformer "
            f"{model.config.latent_channels}; load the VAE that belongs to this model"
        )


def _check_device(device: torch.device | str) -> None:
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:  # torch raises either
        reason = str(error).splitlines()[0]
        raise ValueError(f"device {str(device)!r} cannot be used ({reason}); try cpu") from error
