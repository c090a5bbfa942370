"""MODEL: CrossDiT as one of ComfyUI's own diffusion models.

ComfyUI's layer factory builds the network, so casting, partial loading, LoRA, merging and saving
are ComfyUI's. Weights keep the checkpoint's names.
Letters: B batch, C channels, T H W latent grid, L text tokens.
"""

from __future__ import annotations

import math
from typing import Any

import comfy.conds
import comfy.latent_formats
import comfy.model_base
import comfy.model_management
import comfy.patcher_extension
import comfy.supported_models_base
import torch
from comfy.model_patcher import ModelPatcher
from torch import Tensor

from ....kandinsky_core.attention import Attend, Nabla
from ....kandinsky_core.checkpoint import CheckpointInfo
from ....kandinsky_core.family import DiTConfig, SamplingSettings
from ....kandinsky_core.flow import VisualCondition
from ....kandinsky_core.models import AroundBlock, AroundBlocks, CrossDiT, cache_bytes, call_bytes
from ..attention.choice import chosen_attention, through_override
from ..latents import LatentSpace, pixel_size
from ..packed import PackedOperations, packed_layers, unpacked_state
from ..prompt import TEXT_MARK, name_foreign_text
from .caching import around_blocks
from .chosen import chosen_rope_scale
from .conditions import visual_conditions
from .patches import around_block, shows_ends
from .sampling import FlowSampling

TIME_SCALE = 1000.0
"""ComfyUI hands over 1000 t."""


class Network(CrossDiT):
    """CrossDiT called the way ComfyUI calls a diffusion model."""

    def __init__(
        self,
        *,
        config: DiTConfig,
        operations: Any,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ) -> None:
        super().__init__(config, ops=operations, dtype=dtype, device=device)
        self.dtype = dtype

    def forward(
        self,
        x: Tensor,
        timestep: Tensor,
        context: Tensor,
        control: Any = None,  # noqa: ARG002  part of the host's call
        transformer_options: dict[str, Any] | None = None,
        **extra: Any,
    ) -> Tensor:
        """Predict the velocity; wrappers such as EasyCache go around it.

        Args:
            x: Noisy latents (B, C, T, H, W), or (B, C, H, W) for an image.
            timestep: 1000 t, (B,).
            context: Text tokens (B, L, D_text).
            control: Unused; the family has no control networks.
            transformer_options: The host's patches and wrappers.
            extra: What `Kandinsky5.extra_conds` returns, and how to compute.

        Returns:
            Velocity of the shape of x.
        """
        options = transformer_options or {}
        wrappers = comfy.patcher_extension.get_all_wrappers(
            comfy.patcher_extension.WrappersMP.DIFFUSION_MODEL, options
        )
        executor = comfy.patcher_extension.WrapperExecutor.new_class_executor(
            self._velocity, self, wrappers
        )
        return executor.execute(x, timestep, context, options, **extra)

    def _velocity(
        self,
        x: Tensor,
        timestep: Tensor,
        context: Tensor,
        options: dict[str, Any],
        *,
        pooled: Tensor,
        rope_scale: tuple[float, float, float],
        attend: Attend,
        nabla: Nabla | None = None,
        around_blocks: AroundBlocks | None = None,
        around_block: AroundBlock | None = None,
        text_mask: Tensor | None = None,
        first_frame: Tensor | None = None,
        last_frame: Tensor | None = None,
        source: Tensor | None = None,
        **_: Any,
    ) -> Tensor:
        is_image = x.ndim == 4
        latents = x[:, :, None] if is_image else x
        condition = VisualCondition(first_frame, source, last_frame)
        velocity = super().forward(
            condition.network_input(latents, self.config.visual_cond),
            timestep.float() / TIME_SCALE,
            context,
            pooled,
            None if text_mask is None else text_mask.bool(),
            rope_scale=rope_scale,
            attend=through_override(attend, options),
            around_blocks=around_blocks,
            around_block=around_block,
            nabla=nabla,
        )
        return velocity[:, :, 0] if is_image else velocity


class ModelConfig(comfy.supported_models_base.BASE):
    """What ComfyUI wants to know of a model before it is built."""

    unet_extra_config: dict[str, Any] = {}  # noqa: RUF012  the host copies it
    # the family was trained in bf16; fp16 has a narrower range and is left to an explicit choice
    supported_inference_dtypes = [torch.bfloat16, torch.float32]  # noqa: RUF012

    def __init__(self, info: CheckpointInfo, space: LatentSpace) -> None:
        super().__init__({"config": info.config})
        self.sampling_settings = {"shift": info.settings.shift}
        self.latent_format = space.latent_format()
        # these cast each weight to the dtype of its input, which the fp32 islands rely on
        self.custom_operations = PackedOperations


class Kandinsky5(comfy.model_base.BaseModel):
    """The model around the network: conditioning in, denoised latents out."""

    def __init__(self, model_config: ModelConfig, info: CheckpointInfo, space: LatentSpace) -> None:
        super().__init__(
            model_config, comfy.model_base.ModelType.FLOW, device="meta", unet_model=Network
        )
        self.model_sampling = FlowSampling(model_config)
        self.info = info
        self.space = space
        self.cached_rows = 0
        """Rows whose last result a cache will keep; set while the host counts memory."""
        self._foreign_text_named = False

    def extra_conds(self, **kwargs: Any) -> dict[str, comfy.conds.CONDRegular]:
        """Turn one entry of a CONDITIONING into arguments of `Network`.

        Entries are batched only where all shapes agree: the host would otherwise repeat the
        shorter text, which changes the result of this model.
        """
        noise, config = kwargs["noise"], self.info.config
        which = kwargs.get("prompt_type", "positive")
        tokens, pooled = kwargs.get("cross_attn"), kwargs.get("pooled_output")
        if tokens is None or pooled is None:
            raise ValueError(
                f"{which}: expected text tokens and a pooled vector, found "
                f"{'no tokens' if tokens is None else 'no pooled vector'}; encode the prompt with "
                "the CLIP of Load Text Encoders (Kandinsky 5)."
            )
        expected, found = (
            (config.text_dim, config.pooled_dim),
            (tokens.shape[-1], pooled.shape[-1]),
        )
        if found != expected:
            raise ValueError(
                f"{which}: this model reads text of widths {expected} (tokens, pooled), the "
                f"prompt was encoded with widths {found}; load the text encoders that belong to "
                f"the model ({self.info.variant})."
            )
        if TEXT_MARK not in kwargs and not self._foreign_text_named:
            name_foreign_text(which)
            self._foreign_text_named = True
        if noise.shape[1] != config.latent_channels:
            raise ValueError(
                f"latent: this model has {config.latent_channels} channels, the latent has "
                f"{noise.shape[1]}; make it with Empty Latent (Kandinsky 5)."
            )
        settings = self.info.settings
        assert settings is not None, "only transformers make a MODEL"
        conds = {
            "c_crossattn": comfy.conds.CONDRegular(tokens),
            "pooled": comfy.conds.CONDRegular(pooled),
            "num_frames": comfy.conds.CONDConstant(noise.shape[2] if noise.ndim == 5 else 1),
            "settings": comfy.conds.CONDConstant(settings.for_size(*pixel_size(noise))),
        }
        mask = kwargs.get("attention_mask")
        if mask is not None and mask.shape == tokens.shape[:2] and not mask.all():
            conds["text_mask"] = comfy.conds.CONDRegular(mask.float())
        for name, latents in visual_conditions(kwargs, self.info, self.space, noise).items():
            conds[name] = comfy.conds.CONDRegular(latents)
        return conds

    def _apply_model(
        self,
        x: Tensor,
        t: Tensor,
        c_concat: Tensor | None = None,
        c_crossattn: Tensor | None = None,
        control: Any = None,
        transformer_options: dict[str, Any] | None = None,
        *,
        settings: SamplingSettings,
        num_frames: int,
        first_frame: Tensor | None = None,
        last_frame: Tensor | None = None,
        **kwargs: Any,
    ) -> Tensor:
        """Denoise; given frames are put into x, and into the result, so that any sampler lands
        on them exactly."""
        options = transformer_options or {}
        starts, ends = shows_ends(options, num_frames)
        first_frame, last_frame = first_frame if starts else None, last_frame if ends else None
        nabla, attend = chosen_attention(options, settings, x, self.info.config)
        condition = VisualCondition(first_frame, last_frame=last_frame)
        denoised = super()._apply_model(
            condition.impose(x),
            t,
            c_concat,
            c_crossattn,
            control,
            options,
            first_frame=first_frame,
            last_frame=last_frame,
            rope_scale=chosen_rope_scale(options, settings),
            attend=attend,
            nabla=nabla,
            around_blocks=around_blocks(options),
            around_block=around_block(options),
            **kwargs,
        )
        return condition.impose(denoised)

    def state_dict_for_saving(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """Return what native savers write; packed weights as numbers, which every loader reads."""
        state = super().state_dict_for_saving(*args, **kwargs)
        for name, weight in unpacked_state(self.diffusion_model, torch.bfloat16).items():
            state[f"model.diffusion_model.{name}"] = weight
        return state

    def memory_required(
        self,
        input_shape: Any,
        cond_shapes: Any = None,  # noqa: ARG002  text is small beside the video
    ) -> float:
        """Return the bytes of tensors at the peak of one call on `input_shape`."""
        config, (batch, _, *grid) = self.info.config, input_shape
        tokens, dtype = math.prod(grid) // config.patch_volume, self.get_dtype()
        compute = self.manual_cast_dtype or dtype
        stored = torch.uint8 if packed_layers(self.diffusion_model) else dtype
        needed = call_bytes(config, tokens, batch=batch, dtype=compute, stored=stored)
        if self.cached_rows:
            needed += cache_bytes(
                config, tokens, rows=batch, residuals=self.cached_rows, dtype=compute
            )
        return needed


def is_kandinsky(model: ModelPatcher) -> bool:
    """Return whether a MODEL was made by Load Model (Kandinsky 5)."""
    return isinstance(model.model, Kandinsky5)


def model_info(model: ModelPatcher) -> CheckpointInfo:
    """Return what the checkpoint of a MODEL is.

    Raises:
        ValueError: The MODEL was made by another node.
    """
    if not is_kandinsky(model):
        raise ValueError(
            "model: expected one from Load Model (Kandinsky 5), found "
            f"{type(model.model).__name__}; this node reads the checkpoint's own settings."
        )
    return model.model.info


def settings_for(model: ModelPatcher, latent: dict[str, Any] | None) -> SamplingSettings:
    """Return the checkpoint's settings, of the size class that a LATENT belongs to if one is
    given."""
    settings = model_info(model).settings
    assert settings is not None, "only transformers make a MODEL"
    if latent is None:
        return settings
    return settings.for_size(*pixel_size(latent["samples"]))


def check_size(model: ModelPatcher, latent: dict[str, Any]) -> None:
    """Refuse a LATENT that the MODEL's attention cannot take, before anything runs.

    Raises:
        ValueError: Its size does not divide into NABLA's tiles.
    """
    options = model.model_options.get("transformer_options", {})
    config = model_info(model).config
    chosen_attention(options, settings_for(model, latent), latent["samples"], config)


def space_name(model: ModelPatcher) -> str:
    """Name of the latent space of a MODEL, which its VAE shares."""
    model_info(model)
    return model.model.space.name


def makes_images_only(model: ModelPatcher) -> bool:
    """Return whether a MODEL works on the latents of the image VAE."""
    return model.model.latent_format.latent_dimensions == 2


def to_model_space(model: ModelPatcher, latents: Tensor) -> Tensor:
    """Return latents as a LATENT holds them -> as the network sees them."""
    return model.model.process_latent_in(latents)


def to_vae_space(model: ModelPatcher, latents: Tensor) -> Tensor:
    """Return latents as the network sees them -> as a LATENT holds them."""
    return model.model.process_latent_out(latents)
