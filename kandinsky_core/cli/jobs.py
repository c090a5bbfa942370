"""Jobs of `generate`: one, or one for every prompt of a list; and what their results carry."""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import import_extra

if TYPE_CHECKING:
    from ..checkpoint import CheckpointInfo
    from ..generate import Generated
    from ..prompts import PromptEntry

_OPTION_OF = {"length": "frames"}
"""Setting of a prompt -> option, where the names differ."""
DECIDING = (
    *("prompt", "negative_prompt", "task", "image", "seed"),
    *("extend", "overlap", "last_frame"),
    *("model", "vae", "text_encoder", "dtype", "lora", "no_lora_trigger"),
    *("height", "width", "size_class", "frames", "steps", "cfg", "shift", "rope_scale"),
    *("normalize", "unguided_last_step", "attention", "nabla_p", "attention_backend"),
    *("magcache", "magcache_ratios", "expand", "keep_language", "max_tokens", "temperature"),
)
"""Options that decide what a job gives: if one differs, it is another job with another output."""
NOT_DECIDING = ("prompts", "split", "output", "sheet", "device", "vae_memory")
"""The others of `generate`. A list that was stopped goes on elsewhere and with less memory, at
differences of rounding and of blended tiles."""

_PARTS = ("vae", "text_encoder", "dtype")
"""Options beside the settings that a result tells where they are given."""
_SWITCHES = ("unguided_last_step", "no_lora_trigger")
"""Likewise, where they are on."""


def list_jobs(args: argparse.Namespace, suffix: str) -> list[argparse.Namespace]:
    """Return the options of every output that a command line asks for.

    Args:
        args: Of `generate`.
        suffix: Of an output, ".mp4" or ".png".

    Returns:
        `args` itself for one prompt. For a list, a copy for each prompt, with its settings, an
        `output` in the folder that `--output` names, and `where` it stands in the list. Equal
        jobs have equal outputs, in this run and in later ones.

    Raises:
        ValueError: Not one of prompt and list is given, or the list cannot be used.
    """
    if (args.prompt is None) == (args.prompts is None):
        raise ValueError(
            "prompt: give one, or a list of them with --prompts FILE"
            if args.prompt is None
            else "--prompts is given beside a prompt: give one of the two"
        )
    if args.prompts is None:
        return [args]
    if args.sheet is not None:
        raise ValueError(f"--sheet {args.sheet} is one file for many prompts: leave it out")
    folder = args.output or Path("outputs")
    if folder.is_file():
        raise ValueError(f"--output {folder} is a file: with --prompts give a folder")
    from ..prompts import parse_prompts

    entries = parse_prompts(_read(args.prompts), source=str(args.prompts), split=args.split)
    return [_job(args, entry, folder, suffix) for entry in entries]


def unfinished(jobs: list[argparse.Namespace]) -> list[argparse.Namespace]:
    """List the jobs whose outputs are not there; say how many are, and make their folder.

    Args:
        jobs: From `list_jobs`; a single job replaces its output and always stays.

    Returns:
        Those to do, each output once.
    """
    if jobs[0].prompts is None:
        return jobs
    folder = jobs[0].output.parent
    folder.mkdir(parents=True, exist_ok=True)
    left: dict[Path, argparse.Namespace] = {}
    for job in jobs:
        if not job.output.exists():
            left.setdefault(job.output, job)
    if len(left) < len(jobs):
        done = len(jobs) - len(left)
        sys.stderr.write(f"{done} of {len(jobs)} exist in {folder} or repeat another: skipped\n")
    return list(left.values())


@contextmanager
def naming(job: argparse.Namespace) -> Iterator[None]:
    """Say where in a list a job stands, in errors that its user can cause."""
    try:
        yield
    except ValueError as error:
        if job.prompts is None:
            raise
        raise ValueError(f"{job.where}: {error}") from error


def result_metadata(
    args: argparse.Namespace, prompt: str, result: Generated, *, task: str, sha256: str
) -> dict[str, str]:
    """Return the texts that a result carries, enough to make it again.

    Args:
        args: Options of the job.
        prompt: What was encoded: the job's own, or what expansion made of it.
        result: What was made.
        task: What was made from what.
        sha256: Checksum of the checkpoint.

    Returns:
        Keyword -> text.
    """
    settings, shape = result.settings, result.shape
    texts = {
        "prompt": prompt,
        "negative_prompt": settings.negative_prompt,
        "model": str(args.model),
        "model_sha256": sha256,
        "task": task,
        "seed": str(args.seed),
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
    if settings.attention == "nabla":
        texts["nabla_p"] = f"{settings.nabla_p:g}"
    for name in ("image", "extend", "last_frame"):
        if getattr(args, name) is not None:
            texts[name] = getattr(args, name).name
    if args.extend is not None:
        texts["overlap"] = str(1 if args.overlap is None else args.overlap)
    if prompt != args.prompt:
        texts["original_prompt"] = args.prompt
    if args.lora:
        texts["lora"] = ", ".join(args.lora)
    texts |= {name: str(getattr(args, name)) for name in _PARTS if getattr(args, name) is not None}
    texts |= {name: "yes" for name in _SWITCHES if getattr(args, name)}
    if args.attention_backend != "auto":
        texts["attention_backend"] = args.attention_backend
    if not args.normalize:
        texts["normalize"] = "no"
    return texts


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


def _job(
    args: argparse.Namespace, entry: PromptEntry, folder: Path, suffix: str
) -> argparse.Namespace:
    own = {_OPTION_OF.get(name, name): value for name, value in entry.settings.items()}
    job = argparse.Namespace(**{**vars(args), **own, "prompt": entry.prompt})
    facts = {name: str(getattr(job, name)) for name in DECIDING}
    digest = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()
    job.output = folder / f"{entry.short_name}_seed{job.seed}_{digest[:8]}{suffix}"
    job.where = f"{args.prompts}, line {entry.line}"
    return job


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
