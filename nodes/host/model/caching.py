"""MagCache and its calibration during ComfyUI's sampling.

A cache counts the calls of the network and knows what each step may reuse, so it takes part only
where a run is what its ratios were measured on: the whole schedule, one call per step with each
of two prompts. Everything else runs in full, and one line of the log says why.
"""

from __future__ import annotations

import logging
import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import comfy.patcher_extension
from comfy.model_patcher import ModelPatcher
from torch import Tensor

from ....kandinsky_core.caching import BlockCache, Branch, Calibration, MagCache, MagRatios
from ....kandinsky_core.family import Size, Task
from ....kandinsky_core.models import AroundBlocks
from ..latents import pixel_size
from .conditions import task_of
from .sampling import sample_latents

RUN = "k5_cache_run"
"""Key of transformer_options during a run: a `CacheRun`."""
KEY = "k5_cache"
"""Of the sampling wrapper; a second cache on a MODEL takes the place of the first."""

BRANCHES: tuple[Branch, ...] = ("cond", "uncond")
"""By the host's numbers in cond_or_uncond."""
Cache = TypeVar("Cache", bound=BlockCache)

SEVERAL_CALLS = (
    "sample_heun",
    "sample_heunpp2",
    "sample_sa_solver_pece",
    "sample_exp_heun_2_x0",
    "sample_exp_heun_2_x0_sde",
)
"""Samplers that call the network again at the time of the next step; those that call it between
steps are told by the time."""


class CacheRun:
    """A cache during one run of a sampler."""

    def __init__(self, cache: BlockCache, sigmas: Tensor) -> None:
        """Begin.

        Args:
            cache: What watches the blocks; starts anew.
            sigmas: Falling times (steps + 1,).
        """
        self.aside: str | None = None
        """Why the cache takes no part; None if it does."""
        self._cache = cache
        self._sigmas = sigmas.tolist()
        self._calls: Counter[Branch] = Counter()
        cache.begin(len(self._sigmas) - 1)

    def step_aside(self, why: str) -> None:
        """Run in full from here on; frees what the cache holds."""
        self.aside = why
        self._cache.end()

    def around(self, options: Mapping[str, Any]) -> AroundBlocks | None:
        """Return what stands around the visual blocks in the next call of the network.

        Args:
            options: transformer_options of the call: what its batch holds, and its time.
        """
        if self.aside is not None:
            return None
        numbers: list[int] = options["cond_or_uncond"]
        sigma = float(options["sigmas"].flatten()[0])
        expected = len(set(numbers)) == len(numbers) and all(
            number < len(BRANCHES) and self._is_next(BRANCHES[number], sigma) for number in numbers
        )
        if not expected:
            self.step_aside("the network is not called once per step and prompt")
            return None
        branches = tuple(BRANCHES[number] for number in numbers)
        around_blocks = self._cache.around(*branches)

        def counted(visual: Tensor, run: Callable[[Tensor], Tensor]) -> Tensor:
            # another cache may answer for the network; then this is never called
            for branch in branches:
                self._calls[branch] += 1
            return around_blocks(visual, run)

        return counted

    def _is_next(self, branch: Branch, sigma: float) -> bool:
        step = self._calls[branch]
        return step < len(self._sigmas) - 1 and math.isclose(
            sigma, self._sigmas[step], rel_tol=1e-3
        )


def around_blocks(options: Mapping[str, Any]) -> AroundBlocks | None:
    """Return what stands around the visual blocks in a call with these transformer_options."""
    run: CacheRun | None = options.get(RUN)
    return None if run is None else run.around(options)


def with_magcache(
    model: ModelPatcher,
    ratios: Callable[[Size, Task], MagRatios],
    *,
    threshold: float,
    max_skips: int,
    retention: float,
) -> ModelPatcher:
    """Copy a MODEL with MagCache.

    Args:
        model: MODEL; a cache that it has is replaced.
        ratios: From height and width in pixels, and what is made from what.
        threshold: See `MagCache`.
        max_skips: See `MagCache`.
        retention: See `MagCache`.

    Returns:
        MODEL. Every run of a sampler on it starts anew.
    """

    def make(size: Size, task: Task) -> MagCache:
        return MagCache(
            ratios(size, task), threshold=threshold, max_skips=max_skips, retention=retention
        )

    def report(run: CacheRun, cache: MagCache) -> None:
        if run.aside is None:
            logging.info(cache.summary())
        else:
            logging.warning("MagCache: %s; every step runs in full.", run.aside)

    return _with_cache(model, make, report)


def measure_ratios(
    model: ModelPatcher,
    latent: dict[str, Any],
    sigmas: Tensor,
    *,
    source: str,
    **sampling: Any,
) -> tuple[MagRatios, dict[str, Any]]:
    """Sample once in full with our sampler and note what MagCache needs.

    Args:
        model: MODEL; a cache that it has is left out.
        latent: LATENT to start from.
        sigmas: Times of a whole run (steps + 1,).
        source: What is measured, for messages.
        sampling: Keyword arguments of `sample_latents`.

    Returns:
        The ratios, and the LATENT that was made.

    Raises:
        ValueError: The run is not one that can be measured.
    """
    runs: list[CacheRun] = []
    calibration = Calibration()
    watched = _with_cache(
        model, lambda _size, _task: calibration, lambda run, _calibration: runs.append(run)
    )
    sampled = sample_latents(watched, latent, sigmas, **sampling)
    aside = runs[0].aside
    if aside is not None:
        raise ValueError(
            f"the calibration cannot use this run: {aside}; give it a model without other caches, "
            "one positive and one negative prompt."
        )
    return calibration.ratios(source), sampled


def _with_cache(
    model: ModelPatcher,
    make: Callable[[Size, Task], Cache],
    report: Callable[[CacheRun, Cache], None],
) -> ModelPatcher:
    """Copy a MODEL with a cache; `report` hears of every run that came to its end."""

    def around_sampling(
        executor: Any,
        guider: Any,
        sigmas: Tensor,
        extra_args: dict[str, Any],
        callback: Any,
        noise: Tensor,
        *others: Any,
        **named: Any,
    ) -> Tensor:
        cache = make(pixel_size(noise), task_of(guider.conds.get("positive", ()), noise))
        run = CacheRun(cache, sigmas)
        why = _unlike_calibration(guider, executor.class_obj, sigmas.tolist())
        if why is not None:
            run.step_aside(why)
        # the host made these options for this run alone
        options = extra_args["model_options"].setdefault("transformer_options", {})
        options[RUN] = run
        try:
            samples = executor(guider, sigmas, extra_args, callback, noise, *others, **named)
        finally:
            cache.end()
        report(run, cache)
        return samples

    def around_preparing(
        executor: Any,
        patcher: ModelPatcher,
        noise_shape: Sequence[int],
        conds: Mapping[str, Any],
        *others: Any,
        **named: Any,
    ) -> Any:
        # the host counts beforehand, where it knows the network alone, what to keep free
        patcher.model.cached_rows = noise_shape[0] * len(conds)
        try:
            return executor(patcher, noise_shape, conds, *others, **named)
        finally:
            patcher.model.cached_rows = 0

    patched = model.clone()
    kinds = comfy.patcher_extension.WrappersMP
    for kind, wrapper in (
        (kinds.SAMPLER_SAMPLE, around_sampling),
        (kinds.PREPARE_SAMPLING, around_preparing),
    ):
        patched.remove_wrappers_with_key(kind, KEY)
        patched.add_wrapper_with_key(kind, KEY, wrapper)
    return patched


def has_cache(model: ModelPatcher) -> bool:
    """Return whether a MODEL has a cache of its blocks' results."""
    return bool(model.get_wrappers(comfy.patcher_extension.WrappersMP.SAMPLER_SAMPLE, KEY))


def _unlike_calibration(guider: Any, sampler: Any, sigmas: list[float]) -> str | None:
    """Return why a run is not one that ratios describe; None if it is."""
    largest = float(guider.inner_model.model_sampling.sigma_max)
    if sigmas[0] < 0.99 * largest or sigmas[-1] > 0:
        return "the run is a part of a schedule (denoise below 1, or some of the steps)"
    if not set(guider.conds) <= {"positive", "negative"}:
        return "the guider has more than a positive and a negative prompt"
    for entries in guider.conds.values():
        if len(entries) > 1 or any("timestep_start" in entry for entry in entries):
            return "a prompt is combined from several, or is for some of the steps"
    function = getattr(sampler, "sampler_function", None)
    if getattr(function, "__name__", "") in SEVERAL_CALLS:
        return "the sampler calls the network several times per step"
    return None
