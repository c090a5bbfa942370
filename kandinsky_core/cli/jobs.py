"""Jobs of `generate`: one, or one for every prompt of a list; and what their results carry."""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import fields, is_dataclass, replace
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Any

from ..errors import import_extra
from .job import Job
from .output import suffix_of

if TYPE_CHECKING:
    from ..checkpoint import CheckpointInfo
    from ..generate import Generated
    from ..prompts import PromptEntry, Split

_FIELD_OF = {"length": "num_frames", "steps": "num_steps", "cfg": "guidance_scale"}
"""Setting of a prompt -> field of a request, where the names differ."""
NOT_DECIDING = ("outputs", "place", "device")
"""Fields of a job and of its parts that do not decide what it gives. A list that was stopped goes
on elsewhere and with less memory, at differences of rounding and of blended tiles."""


def list_jobs(shared: Job, prompts: Path, split: Split) -> list[Job]:
    """Return the jobs of a list of prompts.

    Args:
        shared: What they share; its output is the folder, by default "outputs".
        prompts: File of the list.
        split: What separates its prompts.

    Returns:
        One for each prompt, with its settings, its output, and where it stands in the list.
        Equal jobs have equal outputs, in this run and in later ones.

    Raises:
        ValueError: The list cannot be used.
    """
    from ..prompts import parse_prompts

    outputs = shared.outputs
    if outputs.sheet is not None:
        raise ValueError(f"--sheet {outputs.sheet} is one file for many prompts: leave it out")
    folder = outputs.output or Path("outputs")
    if folder.is_file():
        raise ValueError(f"--output {folder} is a file: with --prompts give a folder")
    entries = parse_prompts(_read(prompts), source=str(prompts), split=split)
    return [_job(shared, entry, folder, f"{prompts}, line {entry.line}") for entry in entries]


def unfinished(jobs: list[Job]) -> list[Job]:
    """List the jobs whose outputs are not there; say how many are, and make their folder.

    Args:
        jobs: From `list_jobs`.

    Returns:
        Those to do, each output once.
    """
    folder = _output_of(jobs[0]).parent
    folder.mkdir(parents=True, exist_ok=True)
    left: dict[Path, Job] = {}
    for job in jobs:
        if not _output_of(job).exists():
            left.setdefault(_output_of(job), job)
    if len(left) < len(jobs):
        done = len(jobs) - len(left)
        sys.stderr.write(f"{done} of {len(jobs)} exist in {folder} or repeat another: skipped\n")
    return list(left.values())


@contextmanager
def naming(job: Job) -> Iterator[None]:
    """Say where in a list a job stands, in errors that its user can cause."""
    try:
        yield
    except ValueError as error:
        if not job.place:
            raise
        raise ValueError(f"{job.place}: {error}") from error


def result_metadata(
    job: Job, prompt: str, result: Generated, *, task: str, sha256: str
) -> dict[str, str]:
    """Return the texts that a result carries, enough to make it again.

    Args:
        job: What was asked for.
        prompt: What was encoded: the job's own, or what expansion made of it.
        result: What was made.
        task: What was made from what.
        sha256: Checksum of the checkpoint.

    Returns:
        Keyword -> text.
    """
    settings, shape, request, model = result.settings, result.shape, job.request, job.model
    texts = {
        "prompt": prompt,
        "negative_prompt": settings.negative_prompt,
        "model": model.model,
        "model_sha256": sha256,
        "task": task,
        "seed": str(request.seed),
        "steps": str(settings.num_steps),
        "cfg": f"{settings.guidance_scale:g}",
        "shift": f"{settings.shift:g}",
        "rope_scale": " ".join(f"{scale:g}" for scale in settings.rope_scale),
        "attention": settings.attention,
        "width": str(shape.width),
        "height": str(shape.height),
        "frames": str(shape.num_frames),
        "fps": f"{settings.fps:g}",
    }
    loras = (f"{file}" + f":{strength:g}" * (strength != 1) for file, strength in model.loras)
    given = {
        "nabla_p": f"{settings.nabla_p:g}" if settings.attention == "nabla" else None,
        "image": job.given.image and job.given.image.name,
        "extend": job.given.extend and job.given.extend.name,
        "overlap": request.overlap if job.given.extend else None,
        "last_frame": job.given.last_frame and job.given.last_frame.name,
        "original_prompt": request.prompt if request.prompt != prompt else None,
        "lora": ", ".join(loras) or None,
        "vae": model.vae,
        "text_encoder": model.text_encoder,
        "dtype": model.dtype,
        "unguided_last_step": "yes" if request.unguided_last_step else None,
        "no_lora_trigger": None if request.use_triggers else "yes",
        "attention_backend": None if model.attention_backend == "auto" else model.attention_backend,
        "normalize": None if request.normalize else "no",
    }
    return texts | {name: str(value) for name, value in given.items() if value is not None}


def checksum(info: CheckpointInfo) -> str:
    """Return the checksum that tells a checkpoint from others of its kind, under a progress bar.

    Args:
        info: The checkpoint.

    Returns:
        SHA-256 in hex: of the file, as download pages show it; of a model in several files, of
        the lines `name checksum` of each.
    """
    from ..weights import weight_files

    files = weight_files(info.path, info.kind)
    size = sum(file.stat().st_size for file in files)
    tqdm = import_extra("tqdm", "video").tqdm
    # small files are read before a bar would appear
    with tqdm(desc="checksum", total=size, unit="B", unit_scale=True, delay=1) as bar:
        digests = {file.name: _sha256(file, bar) for file in files}
    if len(digests) == 1:
        return next(iter(digests.values()))
    lines = "".join(f"{name} {digest}\n" for name, digest in digests.items())
    return hashlib.sha256(lines.encode()).hexdigest()


def _job(shared: Job, entry: PromptEntry, folder: Path, place: str) -> Job:
    own = {_FIELD_OF.get(name, name): value for name, value in entry.settings.items()}
    request = replace(shared.request, prompt=entry.prompt, **own)
    job = replace(shared, request=request, place=place)
    digest = hashlib.sha256(json.dumps(_deciding(job), sort_keys=True).encode()).hexdigest()
    suffix = suffix_of(request.task)
    output = folder / f"{entry.short_name}_seed{request.seed}_{digest[:8]}{suffix}"
    return replace(job, outputs=replace(shared.outputs, output=output))


def _deciding(part: Any) -> dict[str, Any]:
    """Return what decides a job's result, less what is as it is by default.

    Later options, which older lists do not use, so leave the names of their outputs alone.
    """
    facts: dict[str, Any] = {}
    for field in fields(part):
        value = getattr(part, field.name)
        if field.name not in NOT_DECIDING and value != field.default:
            facts[field.name] = _deciding(value) if is_dataclass(value) else _plain(value)
    return facts


def _plain(value: Any) -> Any:
    """Spell a value the same on every system, which paths are not."""
    if isinstance(value, tuple):
        return [_plain(each) for each in value]
    return value.as_posix() if isinstance(value, PurePath) else str(value)


def _output_of(job: Job) -> Path:
    assert job.outputs.output is not None, "list_jobs gives each job one"
    return job.outputs.output


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"--prompts {path} is no UTF-8 text: save it as UTF-8") from error
    except OSError as error:
        raise ValueError(f"--prompts {path} cannot be read ({error.strerror})") from error


def _sha256(file: Path, bar: Any) -> str:
    digest = hashlib.sha256()
    with file.open("rb") as stream:
        while piece := stream.read(2**22):
            digest.update(piece)
            bar.update(len(piece))
    return digest.hexdigest()
