"""Schedules and sampling through ComfyUI's own entry points."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import comfy.model_management
import comfy.model_sampling
import comfy.sample
import comfy.samplers
import comfy.utils
import latent_preview
from torch import Tensor

from ....kandinsky_core.flow import sample
from ..latents import SPACE

TABLE_LENGTH = 8400
"""Entries of the sigma table. The native `simple` scheduler picks from it at equal distances,
so it is exact for every step count that divides this: to 8, 10, 12, 14 to 16, 20, 28, 30, 50."""


class FlowSampling(comfy.model_sampling.ModelSamplingDiscreteFlow, comfy.model_sampling.CONST):
    """ComfyUI's flow sampling with a table fine enough for any usual number of steps."""

    def set_parameters(
        self, shift: float = 1.0, timesteps: int = TABLE_LENGTH, multiplier: float = 1000
    ) -> None:
        super().set_parameters(shift=shift, timesteps=timesteps, multiplier=multiplier)


def sampling_shift(model: Any) -> float | None:
    """Return the shift that a node such as ModelSamplingSD3 put on a MODEL; None if none did.

    Raises:
        ValueError: What a node put there is no schedule of this family, and its shift, if it has
            one, is another quantity.
    """
    patched = model.object_patches.get("model_sampling")
    if patched is None:
        return None
    own = model.model.model_sampling
    if isinstance(patched, comfy.model_sampling.ModelSamplingDiscreteFlow):
        if patched.multiplier == own.multiplier:
            return float(patched.shift)
        found = f"ModelSamplingAuraFlow (times up to {patched.multiplier:g})"
    else:
        found = _host_name(type(patched))
    raise ValueError(
        f"model: expected no schedule or that of ModelSamplingSD3, found that of {found}; take the "
        "node that sets it out, and set shift here."
    )


def _host_name(made: type) -> str:
    """Name of a node's class of sampling as the host calls what it is made from."""
    names = (base.__name__ for base in made.mro() if base.__module__ == "comfy.model_sampling")
    return next(names, made.__name__)


def native_sigmas(model: Any, steps: int) -> Tensor:
    """Return the host's own times of a MODEL, (steps + 1,) from noise to 0, with the shift set on
    it."""
    return comfy.samplers.calculate_sigmas(
        model.get_model_object("model_sampling"), "simple", steps
    )


def euler(
    model: Callable[..., Tensor],
    x: Tensor,
    sigmas: Tensor,
    extra_args: dict[str, Any] | None = None,
    callback: Callable[[dict[str, Any]], None] | None = None,
    disable: bool | None = None,  # noqa: ARG001  the bar is on the node
) -> Tensor:
    """Return the core's Euler sampler in the form of a ComfyUI sampler function.

    Args:
        model: (x, sigma (B,), **extra_args) -> denoised, guidance and noise mask included.
        x: (B, C, T, H, W) or (B, C, H, W), noised for sigmas[0].
        sigmas: Falling times (steps + 1,).
        extra_args: For the model.
        callback: Called at every step with what ComfyUI's progress and previews read.
        disable: Whether the console bar is off.

    Returns:
        x at sigmas[-1].
    """
    ones = x.new_ones([x.shape[0]])

    def velocity(x_t: Tensor, t: Tensor) -> Tensor:
        return (x_t - model(x_t, t * ones, **(extra_args or {}))) / t

    for step in sample(velocity, x, sigmas):
        comfy.model_management.throw_exception_if_processing_interrupted()
        x = step.latents
        if callback is not None:
            callback({"i": step.index, "x": x, "denoised": step.denoised, "sigma": step.t})
    return x


class Guider(comfy.samplers.CFGGuider):
    """ComfyUI's guidance, off from a given time on."""

    unguided_from = 0.0
    """Time in [0, 1] from which on, towards 0, guidance is off."""

    def predict_noise(
        self,
        x: Tensor,
        timestep: Tensor,
        model_options: Any = None,
        seed: int | None = None,
    ) -> Tensor:
        """Call the model, without the negative prompt where guidance is off."""
        scale = self.cfg
        if timestep[0] <= self.unguided_from:
            self.set_cfg(1.0)
        try:
            return super().predict_noise(x, timestep, model_options or {}, seed)
        finally:
            self.set_cfg(scale)


def sample_latents(
    model: Any,
    latent: dict[str, Any],
    sigmas: Tensor,
    *,
    positive: list[Any],
    negative: list[Any],
    cfg: float,
    seed: int,
    unguided_last_step: bool = False,
) -> dict[str, Any]:
    """Sample a LATENT with the core's Euler steps; noise, mask, previews and cancel are ComfyUI's.

    Args:
        model: MODEL.
        latent: LATENT; its noise_mask and batch_index are honoured.
        sigmas: Times (steps + 1,); empty returns the latent as it is.
        positive: CONDITIONING.
        negative: CONDITIONING.
        cfg: Guidance scale.
        seed: Of the noise.
        unguided_last_step: Whether the last step goes without guidance.

    Returns:
        LATENT.
    """
    samples = comfy.sample.fix_empty_latent_channels(model, latent["samples"])
    noise = comfy.sample.prepare_noise(samples, seed, latent.get("batch_index"))
    if len(sigmas) > 1:
        guider = Guider(model)
        guider.set_conds(positive, negative)
        guider.set_cfg(cfg)
        if unguided_last_step:
            guider.unguided_from = sigmas[-2].item()
        samples = guider.sample(
            noise,
            samples,
            comfy.samplers.KSAMPLER(euler),
            sigmas,
            denoise_mask=latent.get("noise_mask"),
            callback=latent_preview.prepare_callback(model, len(sigmas) - 1),
            disable_pbar=not comfy.utils.PROGRESS_BAR_ENABLED,
            seed=seed,
        ).to(comfy.model_management.intermediate_device())
    sampled = {**latent, "samples": samples}
    space = getattr(model.model, "space", None)  # only our own MODEL names it
    return sampled if space is None else {**sampled, SPACE: space.name}
