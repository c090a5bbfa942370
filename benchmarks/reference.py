"""diffusers' Kandinsky 5 with our weights: peer of benchmarks and parity tests."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeVar

import torch
from diffusers import (
    DiffusionPipeline,
    FlowMatchEulerDiscreteScheduler,
    Kandinsky5T2VPipeline,
    Kandinsky5Transformer3DModel,
)
from diffusers.models.transformers import transformer_kandinsky as upstream
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask
from torch.nn.functional import scaled_dot_product_attention

from kandinsky_core.attention import Nabla
from kandinsky_core.family.config import DiTConfig
from kandinsky_core.models import CrossDiT
from kandinsky_core.text import TextConditioning

CPU = torch.device("cpu")
P = TypeVar("P", bound=DiffusionPipeline)
_dispatch = upstream.dispatch_attention_fn


def build_upstream(config: DiTConfig) -> Kandinsky5Transformer3DModel:
    """diffusers' network in our dimensions, with weights of its own."""
    return Kandinsky5Transformer3DModel(
        in_visual_dim=config.latent_channels,
        out_visual_dim=config.latent_channels,
        in_text_dim=config.text_dim,
        in_text_dim2=config.pooled_dim,
        time_dim=config.time_dim,
        patch_size=config.patch_thw,
        model_dim=config.model_dim,
        ff_dim=config.ff_dim,
        num_text_blocks=config.num_text_blocks,
        num_visual_blocks=config.num_visual_blocks,
        axes_dims=config.axes_dims,
        visual_cond=config.visual_cond,
    )


def build_pair(
    config: DiTConfig,
    dtype: torch.dtype = torch.float32,
    device: torch.device = CPU,
) -> tuple[CrossDiT, Kandinsky5Transformer3DModel]:
    """Our network and diffusers' with the same random weights, modulation included."""
    torch.manual_seed(0)
    ours = CrossDiT(config, dtype=dtype).eval().requires_grad_(False)
    for parameter in ours.parameters():
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=0.7 * parameter.shape[1] ** -0.5)
        else:  # biases are near 0, the weights of norms near 1
            torch.nn.init.normal_(parameter, mean=float(parameter.mean() > 0.5), std=0.1)
    theirs = build_upstream(config)
    theirs.load_state_dict(ours.state_dict(), strict=True)
    theirs = theirs.to(dtype).eval().requires_grad_(False)
    for name, parameter in theirs.named_parameters():
        # what from_pretrained keeps in fp32 and its forward pass relies on
        if any(part in name for part in theirs._keep_in_fp32_modules or ()):
            parameter.data = parameter.data.float()
    return ours.to(device), theirs.to(device)


def make_inputs(
    config: DiTConfig,
    latent_thw: tuple[int, int, int],
    dtype: torch.dtype,
    device: torch.device = CPU,
) -> dict[str, Tensor]:
    """Return what both take: x (1, C, T, H, W), t, text tokens and pooled text."""
    generator = torch.Generator().manual_seed(1)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator).to(device, dtype)

    return {
        "x": normal(1, config.input_channels, *latent_thw),
        "t": torch.tensor([0.7], device=device),
        "text_tokens": normal(1, 32, config.text_dim),
        "text_pooled": normal(1, config.pooled_dim),
    }


def run_upstream(
    model: Kandinsky5Transformer3DModel,
    x: Tensor,
    t: Tensor,
    text_tokens: Tensor,
    text_pooled: Tensor,
    *,
    rope_scale: tuple[float, float, float] = (1.0, 1.0, 1.0),
    nabla: Nabla | None = None,
) -> Tensor:
    """One call of diffusers' network, with arguments as ours takes them.

    Returns:
        Velocity (B, C, T, H, W).
    """
    device = x.device
    frames, height, width = x.shape[2], x.shape[3] // 2, x.shape[4] // 2
    sparse = None
    if nabla is not None:
        assert nabla.sta_window_thw is not None, "the reference always has a window"
        window = Kandinsky5T2VPipeline.fast_sta_nabla(
            frames, height // 8, width // 8, *nabla.sta_window_thw, device=device
        )
        sparse = {"sta_mask": window[None, None], "to_fractal": True, "P": nabla.cdf_threshold}
    out = model(
        hidden_states=x.movedim(1, -1),
        encoder_hidden_states=text_tokens,
        timestep=t * 1000,
        pooled_projections=text_pooled,
        visual_rope_pos=[torch.arange(size, device=device) for size in (frames, height, width)],
        text_rope_pos=torch.arange(text_tokens.shape[1], device=device),
        scale_factor=rope_scale,
        sparse_params=sparse,
    ).sample
    return out.movedim(-1, 1)


def attend_to_mask(query: Tensor, key: Tensor, value: Tensor, attn_mask=None, **options):  # noqa: ANN001, ANN003, ANN201
    """Return what diffusers' dispatcher should make of (B, S, N, K) and the mask of its NABLA.

    The mask of blocks is written out for every token, in the dtype of a bias: the way that a user
    would find, and the peer of our sparse step. Everything else goes to the dispatcher itself.
    """
    if not isinstance(attn_mask, BlockMask):
        return _dispatch(query, key, value, attn_mask=attn_mask, **options)
    mask = attn_mask.to_dense().bool()
    mask = mask.repeat_interleave(64, -1).repeat_interleave(64, -2)
    q, k, v = (x.transpose(1, 2) for x in (query, key, value))
    return scaled_dot_product_attention(q, k, v, attn_mask=mask).transpose(1, 2)


def patch_nabla() -> None:
    """Make diffusers' NABLA run as it means it: its own dispatcher refuses or ignores the mask."""
    upstream.dispatch_attention_fn = attend_to_mask


class OfficialSchedule(FlowMatchEulerDiscreteScheduler):
    """diffusers' Euler step on the times of the official sampler."""

    def set_timesteps(self, num_inference_steps: int, **_: object) -> None:
        """Set the times, warped by the configured shift."""
        even = torch.arange(num_inference_steps, -1, -1) / num_inference_steps
        warp = self.config["shift"]
        self.sigmas = warp * even / (1 + (warp - 1) * even)
        self.timesteps = self.sigmas[:-1] * 1000
        self.num_inference_steps = num_inference_steps
        self._step_index = self._begin_index = None


class FixedText:
    """A text encoder that knows two prompts, of different lengths: "good" and "bad"."""

    def __init__(self, text_dim: int, pooled_dim: int, device: torch.device = CPU) -> None:
        generator = torch.Generator().manual_seed(11)
        self.known = {
            prompt: TextConditioning(
                torch.randn(1, length, text_dim, generator=generator).to(device),
                torch.ones(1, length, dtype=torch.bool, device=device),
                torch.randn(1, pooled_dim, generator=generator).to(device),
            )
            for prompt, length in (("good", 7), ("bad", 4))
        }

    def encode(self, prompts: Sequence[str], **_: object) -> TextConditioning:
        """Return what our pipeline asks for."""
        return TextConditioning.concat([self.known[prompt] for prompt in prompts])

    def upstream_arguments(self) -> dict[str, Tensor]:
        """Return what diffusers' pipelines take in place of "good", with "bad" as the negative
        prompt."""
        arguments = {}
        for prefix, prompt in (("", "good"), ("negative_", "bad")):
            text = self.known[prompt]
            arguments[f"{prefix}prompt_embeds_qwen"] = text.tokens
            arguments[f"{prefix}prompt_embeds_clip"] = text.pooled
            arguments[f"{prefix}prompt_cu_seqlens"] = torch.tensor([0, text.tokens.shape[1]])
        return arguments


def build_upstream_pipeline(
    kind: type[P],
    transformer: Kandinsky5Transformer3DModel,
    vae: torch.nn.Module,
    shift: float,
) -> P:
    """One of diffusers' four pipelines without text encoders, on the official times, silent."""
    parts: dict[str, Any] = {  # their common base names none of them
        "transformer": transformer,
        "vae": vae,
        "scheduler": OfficialSchedule(shift=shift),
        **dict.fromkeys(("text_encoder", "tokenizer", "text_encoder_2", "tokenizer_2")),
    }
    pipeline = kind(**parts)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline
