"""What commands of `__main__.py` show while they run, and the files that they leave."""

from __future__ import annotations

import itertools
import sys
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ..errors import import_extra
from .job import Job, Outputs

if TYPE_CHECKING:
    from ..caching import BlockCache
    from ..family.settings import Task
    from ..generate import Generated, Prepared
    from ..pipeline import Pipeline


def suffix_of(task: Task) -> str:
    """Return the suffix of the file that a task's result goes to."""
    from ..family.tasks import STILL_TASKS

    return ".png" if task in STILL_TASKS else ".mp4"


def check_outputs(job: Job) -> Job:
    """Refuse outputs that could not be written; return the job with the name of its result."""
    from ..files import check_writable

    task = job.request.task
    assert task is not None, "with_task comes first"
    suffix, sheet = suffix_of(task), job.outputs.sheet
    output = job.outputs.output or Path(f"output{suffix}")
    if output.suffix.lower() != suffix:
        raise ValueError(
            f"--output {output} cannot hold the result of {task}: give a {suffix} file"
        )
    if sheet is not None and sheet.suffix.lower() != ".png":
        raise ValueError(f"--sheet {sheet} cannot hold a contact sheet: give a .png file")
    if sheet is not None and sheet.resolve() == output.resolve():
        raise ValueError(f"--sheet {sheet} is the --output too: give it another name")
    for path in filter(None, (output, sheet)):
        check_writable(path)
    import_extra("tqdm", "video")
    if suffix == ".mp4":
        import_extra("av", "video")
    return replace(job, outputs=replace(job.outputs, output=output))


def sample_with_progress(
    pipeline: Pipeline, prepared: Prepared, cache: BlockCache | None = None
) -> Generated:
    """Sample under a progress bar, which appears with the first step."""
    from ..flow import Step
    from ..generate import run

    tqdm = import_extra("tqdm", "video").tqdm
    with tqdm(desc="sampling", unit="step", delay=1e-3, mininterval=0, miniters=1) as bar:

        def on_step(step: Step) -> None:
            bar.total = step.num_steps
            bar.update()

        return run(pipeline, prepared, on_step=on_step, cache=cache)


def write_result(
    result: Generated, before: np.ndarray | None, outputs: Outputs, metadata: dict[str, str]
) -> None:
    """Decode under a progress bar and write what was made, as it comes.

    Args:
        result: What was made.
        before: Frames to put before it, uint8 (F, H, W, 3).
        outputs: Where it goes, and how much memory the VAE may take.
        metadata: Texts for the files.
    """
    from ..video import write_contact_sheet, write_image, write_video

    output, sheet = outputs.output, outputs.sheet
    assert output is not None, "check_outputs comes first"
    frames: Iterable[np.ndarray] = import_extra("tqdm", "video").tqdm(
        result.frames(memory_budget=outputs.vae_memory),
        desc="decoding",
        total=result.shape.num_frames,
        unit="frame",
    )
    if before is not None:
        frames = itertools.chain(before, frames)
    shown: list[np.ndarray] = []
    if sheet is not None:
        frames = _remembering(frames, shown)
    if output.suffix.lower() == ".png":
        (image,) = frames
        write_image(output, image, metadata=metadata)
    else:
        write_video(output, frames, fps=result.settings.fps, metadata=metadata)
    say(str(output))
    if sheet is not None:
        write_contact_sheet(sheet, np.stack(shown), metadata=metadata)
        say(str(sheet))


def _remembering(frames: Iterable[np.ndarray], shown: list[np.ndarray]) -> Iterator[np.ndarray]:
    for frame in frames:
        shown.append(frame)
        yield frame


def say(line: str) -> None:
    """Print a line of what was asked for."""
    sys.stdout.write(line + "\n")


def note(text: str) -> None:
    """Print a remark beside what was asked for, if there is one."""
    if text:
        sys.stderr.write(f"note: {text}\n")
