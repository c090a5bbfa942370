"""The rows of the family: one CrossDiT class, told apart by numbers only."""

from __future__ import annotations

from .config import DiTConfig, ImageVAEConfig, VideoVAEConfig

_VIDEO_LITE = DiTConfig(1792, 7168, 512, 2, 32, (16, 24, 24))
_VIDEO_PRO = DiTConfig(4096, 16384, 1024, 4, 60, (32, 48, 48))
_IMAGE_EDIT = DiTConfig(2560, 10240, 512, 2, 50, (32, 48, 48))
_IMAGE_LITE = DiTConfig(2560, 10240, 512, 2, 50, (32, 48, 48), visual_cond=False)

VARIANTS: dict[str, DiTConfig] = {
    "video_lite": _VIDEO_LITE,
    "video_pro": _VIDEO_PRO,
    "image_lite": _IMAGE_LITE,
    "image_edit": _IMAGE_EDIT,
    # trained by this project, see nano/
    "nano": DiTConfig(192, 768, 192, 1, 7, (16, 24, 24), text_dim=128, pooled_dim=128),
    # random weights only, for tests
    "debug": DiTConfig(
        64, 128, 32, 1, 2, (8, 12, 12), latent_channels=4, text_dim=24, pooled_dim=12
    ),
}
"""Variant name -> dimensions."""

NANO_VIDEO_VAE = VideoVAEConfig(
    (32, 48, 64), layers_per_block=1, norm_num_groups=8, mid_block_attention=False, patch_size=4
)

VAES: dict[str, VideoVAEConfig | ImageVAEConfig] = {
    "hunyuan": VideoVAEConfig(),
    "flux": ImageVAEConfig(),
    # trained by this project, see nano/
    "nano": NANO_VIDEO_VAE,
}
"""Autoencoder name -> dimensions."""

VAE_OF: dict[str, str] = {
    "video_lite": "hunyuan",
    "video_pro": "hunyuan",
    "image_lite": "flux",
    "image_edit": "flux",
    "nano": "nano",
}
"""Variant -> the autoencoder whose latents it was trained on."""
