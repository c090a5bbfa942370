"""Say what a weight file is from its header alone; no tensor is read.

The weights tell the size of the network. Task, clip length and training stage leave no trace in
them, so those come from our own metadata, else from the name of the file or its folders, else
from a Diffusers config.json, else from a default; `CheckpointInfo.sources` says which.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, TypeVar

from ..errors import CheckpointError
from ..family.config import METADATA_KEY, DiTConfig, ImageVAEConfig, NanoTextConfig, VideoVAEConfig
from ..family.settings import (
    DEFAULT_RELEASES,
    RELEASES,
    TASKS,
    Release,
    SamplingSettings,
    find_settings,
)
from ..family.variants import VAES
from ..models.vae.keys import VAELayout
from ..weights import (
    ARCHITECTURE,
    Component,
    Header,
    TensorEntry,
    main_dtype,
    precision_name,
    projector,
    read_header,
    split_scales,
)
from .families import Family, find_foreign, find_known, is_lora
from .infer import dit_config, matching_variant, vae_mismatch
from .info import CheckpointInfo, Config, facts_in_name

_CLOSEST_VARIANT = {
    "t2v": "video_lite",
    "i2v": "video_lite",
    "t2i": "image_lite",
    "i2i": "image_edit",
}
_NAMES_SEARCHED = 5  # in a download cache: file, transformer, revision, snapshots, model
_SUFFIX = re.compile(r"\.(?:safetensors|gguf)")
_Config = TypeVar("_Config", DiTConfig, VideoVAEConfig, ImageVAEConfig, NanoTextConfig)


def identify(path: str | Path, *, component: Component | None = None) -> CheckpointInfo:
    """Identify a checkpoint from its header.

    Args:
        path: A .safetensors or .gguf file, an index of shards, or a folder (Diffusers' too).
        component: The part wanted, where the file or folder holds several; None prefers the
            transformer.

    Returns:
        What it is, and where each fact comes from.

    Raises:
        CheckpointError: The file is missing, damaged, of another format, or of another model.
        MissingExtraError: It is a GGUF file, and the package gguf is not installed.
    """
    header = read_header(path, component or "transformer")
    family = _find_family(header, component)
    tensors, scales = split_scales(header.path, strip_prefix(header.tensors, family.prefix))
    described = _our_metadata(header)

    variant, config, sources = _dimensions(header, family, tensors, described)
    release: Release | None = None
    settings: SamplingSettings | None = None
    if family.component == "transformer":
        release, settings, release_sources = _release(header.path, variant, config, described)
        sources |= release_sources
    return CheckpointInfo(
        path=header.path,
        kind=family.component,
        variant=variant,
        config=config,
        release=release,
        settings=settings,
        dtype=main_dtype(tensors.values(), is_scaled=bool(scales)),
        precision=precision_name(tensors.values(), is_scaled=bool(scales)),
        num_parameters=sum(entry.size for entry in tensors.values()),
        family=family,
        header=header,
        stated_tasks=tuple(task for task in TASKS if task in described.get("tasks", ())),
        sources=sources,
    )


def describe_metadata(config: Config, **facts: str | int | Sequence[str] | None) -> dict[str, str]:
    """Make the metadata of a file of our own, which `identify` reads back.

    Args:
        config: Dimensions of the network.
        **facts: For transformers: variant, task, seconds, stage, and tasks, a list, where it
            does others than its variant's rows; anything else is kept.

    Returns:
        What safetensors takes as metadata.
    """
    return {METADATA_KEY: json.dumps({"config": asdict(config), **facts}, ensure_ascii=False)}


def strip_prefix(tensors: Mapping[str, TensorEntry], prefix: str) -> dict[str, TensorEntry]:
    """Return the entries under `prefix`, without it; others belong to other parts of a model."""
    return {
        name.removeprefix(prefix): entry
        for name, entry in tensors.items()
        if name.startswith(prefix)
    }


def _find_family(header: Header, component: Component | None) -> Family:
    names, path = header.tensors.keys(), header.path
    if is_lora(names):
        raise CheckpointError(
            f"{path} is a LoRA, not a whole model: load the model it belongs to, then the LoRA."
        )
    wanted = component or "transformer"
    known = find_known(names)
    for family in known:
        if family.component == wanted:
            return family
    # a file of another model may hold a VAE that looks like ours: the model decides
    if foreign := find_foreign(names):
        architecture, part = header.metadata.get(ARCHITECTURE), projector(header.metadata)
        of = f", projector {part!r}" if part else ""
        said = f" (GGUF architecture {architecture!r}{of})" if architecture else ""
        raise CheckpointError(
            f"{path} is {foreign}{said}: expected a Kandinsky 5 {wanted.replace('_', ' ')}."
        )
    if known and component is None:
        return known[0]
    if known:
        part = known[0].component.replace("_", " ")
        raise CheckpointError(
            f"{path} holds a {part} ({known[0].name}): "
            f"expected a {wanted.replace('_', ' ')}; give it to the loader for that part."
        )
    first = ", ".join(sorted(names)[:2])
    raise CheckpointError(
        f"{path} is not a model this package knows (its tensors begin with {first}): "
        f"expected a Kandinsky 5 {wanted.replace('_', ' ')}."
    )


def _our_metadata(header: Header) -> dict[str, Any]:
    try:
        described = json.loads(header.metadata.get(METADATA_KEY, "{}"))
    except ValueError:
        described = None
    if not isinstance(described, dict):
        raise CheckpointError(
            f"{header.path} has an unreadable {METADATA_KEY!r} entry in its metadata: "
            "expected a JSON object; save the file again."
        )
    return described


def _dimensions(
    header: Header,
    family: Family,
    tensors: Mapping[str, TensorEntry],
    described: Mapping[str, Any],
) -> tuple[str, Config | None, dict[str, str]]:
    """Return the variant, the config and their sources."""
    shapes = {name: entry.shape for name, entry in tensors.items()}
    stated = described.get("config")
    if family.component == "text_encoder":
        config = _parse_config(header, NanoTextConfig, stated) if stated else None
        return (
            family.name,
            config,
            {"variant": "weights"} | ({"config": "metadata"} if config else {}),
        )
    if family.vae_layout:
        variant, config = _vae_dimensions(header, family.vae_layout, shapes, stated)
        return (
            variant,
            config,
            {"variant": "weights", "config": "metadata" if stated else "weights"},
        )
    if stated:
        dit = _parse_config(header, DiTConfig, stated)
        _check_stated(header, dit, _measure_dit(header, shapes, dit))
        return (
            matching_variant(dit) or "custom",
            dit,
            {"variant": "metadata", "config": "metadata"},
        )
    dit = _measure_dit(header, shapes)
    variant = matching_variant(dit)
    if variant is None:
        raise CheckpointError(
            f"{header.path} is built like Kandinsky 5 but of no known size: it is "
            f"{dit.model_dim} wide with {dit.num_visual_blocks} visual blocks; "
            "expected one of the released sizes, or a file whose metadata describes it."
        )
    return variant, dit, {"variant": "weights", "config": "weights"}


def _vae_dimensions(
    header: Header,
    layout: VAELayout,
    shapes: Mapping[str, tuple[int, ...]],
    stated: Mapping[str, Any] | None,
) -> tuple[str, VideoVAEConfig | ImageVAEConfig]:
    kind = VideoVAEConfig if layout.kind == "video" else ImageVAEConfig
    rows = {name: row for name, row in VAES.items() if isinstance(row, kind)}
    if stated:
        config = _parse_config(header, kind, stated)
        # shift and scale are measured on data and make no other network
        built = replace(config, shift_factor=0.0, scaling_factor=1.0)
        same = (
            name
            for name, row in rows.items()
            if replace(row, shift_factor=0.0, scaling_factor=1.0) == built
        )
        name = next(same, "custom")
        rows = {name: config}
    mismatches = {name: vae_mismatch(shapes, layout, row) for name, row in rows.items()}
    for name, mismatch in mismatches.items():
        if mismatch is None:
            return name, rows[name]
    raise CheckpointError(
        f"{header.path} is not a VAE of the Kandinsky 5 family: it has "
        f"{next(iter(mismatches.values()))}; use HunyuanVideo's for video, FLUX.1's for images."
    )


def _measure_dit(
    header: Header, shapes: Mapping[str, tuple[int, ...]], stated: DiTConfig | None = None
) -> DiTConfig:
    try:
        return dit_config(shapes, stated)
    except KeyError as error:
        raise CheckpointError(
            f"{header.path} lacks the tensor {error.args[0]}, without which its size cannot be "
            "told: download it again."
        ) from error
    except (ValueError, IndexError, TypeError) as error:
        raise CheckpointError(
            f"{header.path} is built like Kandinsky 5 but does not fit together: {error}; "
            "download it again."
        ) from error


def _check_stated(header: Header, stated: DiTConfig, measured: DiTConfig) -> None:
    for name, value in asdict(stated).items():
        if getattr(measured, name) != value:
            raise CheckpointError(
                f"{header.path} contradicts itself: its metadata says {name} {value}, "
                f"its weights {getattr(measured, name)}; save it again."
            )


def _parse_config(header: Header, kind: type[_Config], stated: Mapping[str, Any]) -> _Config:
    try:
        # JSON has no tuples
        return kind(**{k: tuple(v) if isinstance(v, list) else v for k, v in stated.items()})
    except (TypeError, ValueError, AttributeError) as error:
        raise CheckpointError(
            f"{header.path} has metadata that is no {kind.__name__} ({error}): it may come from "
            "a newer version of this package; update, or save it again."
        ) from error


def _release(
    path: Path, variant: str, config: Config | None, described: Mapping[str, Any]
) -> tuple[Release, SamplingSettings, dict[str, str]]:
    """Return what a transformer was trained for, its settings, and the sources of both."""
    row = variant if variant in DEFAULT_RELEASES else described.get("variant")
    if row not in DEFAULT_RELEASES:
        assert isinstance(config, DiTConfig)
        fallback = "video_lite" if config.visual_cond else "image_lite"
        row = _CLOSEST_VARIANT.get(described.get("task", ""), fallback)
    default = DEFAULT_RELEASES[row]
    evidence: list[tuple[str, Mapping[str, Any]]] = [("metadata", described)]
    evidence += [(f"the name {name!r}", facts_in_name(name)) for name in _names(path)]
    evidence.append(("config.json", _facts_in_diffusers_config(path, row)))

    values, sources = default._asdict(), {}
    for fact in ("task", "seconds", "stage"):
        allowed = [getattr(release, fact) for release in RELEASES if release.variant == row]
        sources[fact] = "default"
        for source, facts in evidence:
            if facts.get(fact) in allowed and facts.get(fact) is not None:
                values[fact], sources[fact] = facts[fact], source
                break
    release = Release(**values)
    settings, used = find_settings(release)
    sources["settings"] = "table" if used == release else f"table, nearest row {tuple(used)}"
    return release, settings, sources


def _names(path: Path) -> list[str]:
    """Return the names that may speak of a checkpoint, nearest first: its own, then folders named
    for us."""
    path = path.absolute()
    own = path.name if path.is_dir() else _SUFFIX.split(path.name)[0]
    above = [parent.name for parent in list(path.parents)[: _NAMES_SEARCHED - 1]]
    return [own, *(name for name in above if "kandinsky" in name.lower())]


def _facts_in_diffusers_config(path: Path, variant: str) -> dict[str, Any]:
    """Return the clip length that a Diffusers config.json betrays by its attention settings."""
    folder = path if path.is_dir() else path.parent
    candidates = (folder / "transformer" / "config.json", folder / "config.json")
    for file in candidates if path.is_dir() else candidates[1:]:
        try:
            config = json.loads(file.read_text(encoding="utf-8"))
            if config.get("attention_type") != "nabla":
                continue
            p = config["attention_P"]
        except (OSError, ValueError, KeyError, AttributeError):
            continue  # it only adds to what the weights say
        for release, settings in RELEASES.items():
            classes = (settings, settings.larger)
            if release.variant == variant and any(
                row and row.attention == "nabla" and row.nabla_p == p for row in classes
            ):
                return {"seconds": release.seconds}
    return {}
