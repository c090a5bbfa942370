"""MagCache, which skips blocks in some steps, and the calibration that it needs."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

from comfy_api.latest import io

from ..kandinsky_core.caching import (
    MagRatios,
    describe_mismatch,
    describe_release,
    find_ratios,
    load_ratios,
    released_names,
    released_ratios,
    save_ratios,
)
from ..kandinsky_core.family import Release, Size, Task
from . import host
from .sampler_inputs import cfg_input, seed_input, shift_input, steps_input
from .sampling import make_sigmas

CATEGORY = "Kandinsky 5/acceleration"
FROM_CHECKPOINT = "from checkpoint"


class CacheSteps(io.ComfyNode):
    """MagCache."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="K5_MagCache",
            display_name="MagCache (Kandinsky 5)",
            category=CATEGORY,
            description=(
                "Skips the blocks in steps where their last result is still good, at some loss of "
                "quality. Works where the sampler calls the model once per step, over the whole "
                "schedule; other runs are computed in full."
            ),
            inputs=[
                io.Model.Input(
                    "model",
                    tooltip=(
                        "From Load Model (Kandinsky 5), or Kandinsky 5 as ComfyUI's own nodes load "
                        "it, for which ratios are chosen below."
                    ),
                ),
                io.Float.Input(
                    "threshold",
                    default=0.12,
                    min=0.0,
                    max=10.0,
                    step=0.01,
                    tooltip=(
                        "Error that may add up before the blocks run again: higher skips more; 0 "
                        "never skips. The reference uses 0.12."
                    ),
                ),
                io.Int.Input(
                    "max_skips",
                    default=2,
                    min=0,
                    max=100,
                    tooltip="Steps that may be skipped in a row. The reference uses 2.",
                ),
                io.Float.Input(
                    "retention",
                    default=0.2,
                    min=0.0,
                    max=1.0,
                    step=0.01,
                    tooltip="First share of the steps that is never skipped, 0.2 in the reference.",
                ),
                io.Combo.Input(
                    "ratios",
                    options=[FROM_CHECKPOINT, *released_names(), *host.ratio_names()],
                    tooltip=(
                        "What tells which steps resemble each other: published with the "
                        "checkpoint, published with the release you name (size, task, seconds, "
                        "stage, sd or hd), or a file that Calibrate MagCache wrote."
                    ),
                ),
                io.String.Input(
                    "ratios_name",
                    optional=True,
                    force_input=True,
                    tooltip="From Calibrate MagCache; takes the place of ratios.",
                ),
            ],
            outputs=[io.Model.Output(tooltip="The model with the cache.")],
        )

    @classmethod
    def validate_inputs(cls, ratios: str) -> bool:  # noqa: ARG003
        """Leave unknown files to `execute`, whose message says what to do."""
        return True

    @classmethod
    def fingerprint_inputs(
        cls, ratios: str = FROM_CHECKPOINT, ratios_name: str | None = None, **_: Any
    ) -> str:
        """Change when a file is calibrated anew."""
        name = ratios_name or ratios
        if name in (FROM_CHECKPOINT, *released_names()):
            return name
        path = host.ratios_path(name, "ratios")
        return f"{path} {path.stat().st_mtime_ns if path.is_file() else None}"

    @classmethod
    def execute(
        cls,
        model: Any,
        threshold: float,
        max_skips: int,
        retention: float,
        ratios: str,
        ratios_name: str | None = None,
    ) -> io.NodeOutput:
        name = ratios_name or ratios
        if not host.is_kandinsky(model):
            model = host.with_native_blocks(model)
        if name == FROM_CHECKPOINT:
            find = _from_checkpoint(model)
        elif name in released_names():
            find = _released(name)
        else:
            find = _from_file(model, name, "ratios_name" if ratios_name else "ratios")
        return io.NodeOutput(
            host.with_magcache(
                model, find, threshold=threshold, max_skips=max_skips, retention=retention
            )
        )


class CalibrateCache(io.ComfyNode):
    """Ratios of a checkpoint that has none."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="K5_CalibrateMagCache",
            display_name="Calibrate MagCache (Kandinsky 5)",
            category=CATEGORY,
            description=(
                "Samples once in full and saves what MagCache needs to know of this checkpoint, "
                "to models/kandinsky5. Once per checkpoint and size class is enough."
            ),
            inputs=[
                io.Model.Input("model", tooltip="The checkpoint to measure; without other caches."),
                io.Conditioning.Input("positive", tooltip="Any usual prompt."),
                io.Conditioning.Input("negative", tooltip="The usual negative prompt."),
                io.Latent.Input("latent", tooltip="Of the size that will be made."),
                io.String.Input(
                    "name",
                    default="magcache_ratios",
                    tooltip="File in models/kandinsky5; one of the same name is replaced.",
                ),
                seed_input("Of the noise; the ratios hardly depend on it."),
                steps_input(
                    "Sampling steps; 0 uses the checkpoint's number. Runs with other numbers "
                    "may use the ratios too."
                ),
                cfg_input(
                    "Guidance; 0 uses the checkpoint's. At 1 the negative prompt is not "
                    "measured, and never skipped later."
                ),
                shift_input(
                    "Shift of the schedule; 0 uses the checkpoint's or ModelSamplingSD3's."
                ),
            ],
            outputs=[
                io.String.Output("file_name", display_name="ratios_name"),
                io.Latent.Output("latent_out", display_name="latent"),
            ],
            is_output_node=True,
        )

    @classmethod
    def execute(
        cls,
        model: Any,
        positive: Any,
        negative: Any,
        latent: dict[str, Any],
        name: str,
        seed: int,
        steps: int,
        cfg: float,
        shift: float,
    ) -> io.NodeOutput:
        info, settings = host.model_info(model), host.settings_for(model, latent)
        path = host.ratios_path(name, "name", create=True)
        sigmas = make_sigmas(model, steps, shift, 1.0, latent)
        cfg = cfg or settings.guidance_scale
        release = describe_release(_release(model))
        ratios, sampled = host.measure_ratios(
            model,
            latent,
            sigmas,
            source=release,
            positive=positive,
            negative=negative,
            cfg=cfg,
            seed=seed,
        )
        height, width = host.pixel_size(latent["samples"])
        measured_on = {
            "release": release,
            "model": info.path.name,
            "task": host.task_of((values for _, values in positive), latent["samples"]),
            "size": [height, width],
            "latent": list(latent["samples"].shape),
            "steps": len(sigmas) - 1,
            "cfg": cfg,
            "sigmas": [round(float(sigma), 6) for sigma in sigmas],
            "seed": seed,
        }
        save_ratios(path, ratios, measured_on)
        return io.NodeOutput(path.name, sampled)


def _release(model: Any) -> Release:
    release = host.model_info(model).release
    assert release is not None, "only transformers make a MODEL"
    return release


def _published(model: Any, size: Size) -> MagRatios:
    """Return the ratios published for a checkpoint at a size."""
    release, settings = _release(model), host.settings_for(model, None)
    try:
        return find_ratios(release, settings.for_size(*size))
    except ValueError as error:
        raise ValueError(
            f"ratios: none were published for {describe_release(release)} at "
            f"{size[0]}x{size[1]}; measure them once with Calibrate MagCache (Kandinsky 5) and "
            "choose its file here."
        ) from error


def _from_checkpoint(model: Any) -> Callable[[Size, Task], MagRatios]:
    """Return the published ratios; a checkpoint without any is refused at once and not in
    sampling."""
    if not host.is_kandinsky(model):
        raise ValueError(
            f"ratios: {FROM_CHECKPOINT} reads a model of Load Model (Kandinsky 5), this one is "
            "ComfyUI's own; choose the release that it is, e.g. k5_lite_t2v_5s_sft_sd, or a file."
        )

    def find(size: Size, task: Task) -> MagRatios:  # noqa: ARG001  a checkpoint has one table a size
        return _published(model, size)

    sizes = host.settings_for(model, None).all_sizes
    for size in sizes[1:]:
        try:
            _published(model, size)
        except ValueError:
            continue
        return find
    _published(model, sizes[0])
    return find


def _released(name: str) -> Callable[[Size, Task], MagRatios]:
    ratios = released_ratios(name)  # of one size
    return lambda _size, _task: ratios


def _from_file(model: Any, name: str, input_id: str) -> Callable[[Size, Task], MagRatios]:
    """Return the ratios of a file, with a warning, once, where they are used for what they are not
    of."""
    path = host.ratios_path(name, input_id)
    if not path.is_file():
        known = ", ".join(host.ratio_names()) or "none yet"
        raise ValueError(
            f"{input_id}: there is no file {path.name!r} in models/kandinsky5 (it holds {known}); "
            "make one with Calibrate MagCache (Kandinsky 5)."
        )
    ratios, measured_on = load_ratios(path)
    if not host.is_kandinsky(model):
        return lambda _size, _task: ratios  # it does not tell what it is
    release, settings = _release(model), host.settings_for(model, None)
    said: set[str] = set()

    def find(size: Size, task: Task) -> MagRatios:
        row = settings.for_size(*size)
        mismatch = describe_mismatch(measured_on, release, settings, row=row, task=task)
        if mismatch and mismatch not in said:
            said.add(mismatch)
            logging.warning("MagCache: %s %s.", name, mismatch)
        return ratios

    return find
