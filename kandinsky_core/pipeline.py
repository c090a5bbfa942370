"""The parts of one model, and how to load them together."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

from .attention import Attend, attend
from .checkpoint import load_transformer, load_vae
from .models import CrossDiT, ImageVAE, VideoVAE
from .nano import nano_path
from .settings import SamplingSettings
from .shapes import Geometry
from .text import TextEncoder, load_nano_text_encoder, load_qwen_clip_folder

NANO = "nano"
"""Model name of the family that is bundled."""


@dataclass(frozen=True)
class Pipeline:
    """The parts of one model."""

    transformer: CrossDiT
    text_encoder: TextEncoder
    vae: VideoVAE | ImageVAE
    settings: SamplingSettings
    """What the checkpoint was made for."""
    attend: Attend = attend
    """Attention backend."""

    @property
    def geometry(self) -> Geometry:
        """How this transformer and this VAE divide space and time."""
        return Geometry.of(self.transformer.config, self.vae.config)

    @property
    def device(self) -> torch.device:
        """Where the transformer is, and so where sampling runs."""
        return next(self.transformer.parameters()).device


def load_pipeline(
    model: str | Path = NANO,
    *,
    vae: str | Path | None = None,
    text_encoder: str | Path | None = None,
    dtype: torch.dtype | None = None,
    device: torch.device | str = "cpu",
) -> Pipeline:
    """Load a transformer with the VAE and text encoder that belong to it.

    Args:
        model: "nano" for the bundled model, a Diffusers folder, or a transformer's file.
        vae: File or folder of the VAE; needed where `model` is a single file.
        text_encoder: Folder with text_encoder, tokenizer, text_encoder_2 and tokenizer_2;
            needed where `model` is a single file.
        dtype: Of the weights; None keeps the files' for large models. Nano runs in fp32.
        device: Where everything runs; the large text encoder stays on the CPU in between.

    Returns:
        The parts, ready for `generate`.

    Raises:
        ValueError: If a part is missing or does not belong to the model.
    """
    if str(model) == NANO:
        dtype = dtype or torch.float32
        transformer, info = load_transformer(nano_path("transformer"), dtype=dtype, device=device)
        loaded_vae = load_vae(vae or nano_path("vae"), dtype=dtype, device=device)
        nano_text = load_nano_text_encoder(text_encoder or nano_path("text_encoder")).to(device)
        return _checked(Pipeline(transformer, nano_text, loaded_vae, info.settings))

    model = Path(model)
    vae = vae or _part(model, "vae", "--vae")
    text_encoder = text_encoder or _part(model, "text_encoder", "--text-encoder").parent
    transformer, info = load_transformer(model, dtype=dtype, device=device)
    return _checked(
        Pipeline(
            transformer,
            load_qwen_clip_folder(text_encoder, dtype=dtype, device=device, offload=True),
            load_vae(vae, dtype=dtype, device=device),
            info.settings,
        )
    )


def _part(model: Path, name: str, option: str) -> Path:
    """The folder of a part inside a Diffusers folder."""
    part = model / name
    if not part.is_dir():
        raise ValueError(
            f"{model} holds no folder {name!r}: a transformer alone is not enough to generate; "
            f"give the {name.replace('_', ' ')} with {option}, or a whole Diffusers folder"
        )
    return part


def _checked(pipeline: Pipeline) -> Pipeline:
    transformer, vae = pipeline.transformer.config, pipeline.vae.config
    if transformer.latent_channels != vae.latent_channels:
        raise ValueError(
            f"the VAE has {vae.latent_channels} latent channels and the transformer "
            f"{transformer.latent_channels}; load the VAE that belongs to this model"
        )
    images_only = pipeline.settings.frame_choices == (1,)
    if isinstance(pipeline.vae, ImageVAE) != images_only:
        kind, wanted = ("an image", "FLUX") if images_only else ("a video", "HunyuanVideo")
        raise ValueError(
            f"this is {kind} model and the VAE is not made for it; load the {wanted} VAE"
        )
    return pipeline
