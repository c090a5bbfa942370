"""Judges the nano family on captions it has never seen; run with `python -m`.

Every held-out question becomes one clip, the oracle measures it, and one line is appended to a
JSON-lines file whose name is a checksum of the weights and settings: a stopped evaluation goes on
where it was, and new weights never mix with old answers. The report is made from those lines.
"""

from __future__ import annotations

import argparse
import logging
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from ...checkpoint import identify, load_transformer, load_vae
from ...files import write_text
from ...generate import GenerateRequest, generate
from ...nano import NanoPart, nano_path
from ...pipeline import Pipeline
from ...text import load_nano_text_encoder
from ..distributed import Group, launch
from ..world import (
    EditQuestion,
    HeldOut,
    correct,
    held_out_edits,
    heldout_captions,
    judge_edit,
    measure,
    render,
)
from .answers import Answers, Row, checksum
from .evaluation_report import failures, make_report

logger = logging.getLogger(__name__)

PARTS: tuple[NanoPart, ...] = ("transformer", "text_encoder", "vae")


@dataclass(frozen=True)
class TestSet:
    """One list of held-out questions."""

    name: str
    task: str
    """What the model is asked for: t2v, i2v or t2i."""
    num_objects: int = 1
    default_count: int = 200

    def questions(self, count: int) -> Sequence[HeldOut]:
        """Return the first `count` questions; fewer where the list is meant to be shorter."""
        count = min(count, self.default_count)
        return heldout_captions(count, task=self.task, num_objects=self.num_objects)


@dataclass(frozen=True)
class EditSet:
    """A list of held-out edits."""

    name: str
    task: str = "i2i"
    default_count: int = 200

    def questions(self, count: int) -> Sequence[EditQuestion]:
        """Return the first `count` questions."""
        return held_out_edits(min(count, self.default_count))


TEST_SETS: dict[str, TestSet] = {
    each.name: each
    for each in (
        TestSet("t2v", "t2v"),
        TestSet("i2v", "i2v"),
        TestSet("t2i", "t2i"),
        TestSet("two_objects", "t2v", num_objects=2, default_count=100),
    )
}
"""Questions about scenes."""

ALL_SETS: dict[str, TestSet | EditSet] = {**TEST_SETS, "i2i": EditSet("i2i")}


def find_parts(folder: Path | None, *, edit: bool = False) -> dict[str, Path]:
    """Return the three files of the model in a folder; those it lacks are the bundled ones.

    Args:
        folder: Of weights, or None.
        edit: Whether the bundled transformer is the one that edits.
    """
    bundled: dict[str, NanoPart] = {part: part for part in PARTS}
    if edit:
        bundled["transformer"] = "edit_transformer"
    paths = {}
    for part, ours in bundled.items():
        path = None if folder is None else folder / f"{part}.safetensors"
        paths[part] = path if path is not None and path.is_file() else nano_path(ours)
    return paths


def load(paths: dict[str, Path], settings: dict[str, float], *, larger: bool = False) -> Pipeline:
    """Load a nano model in fp32, its sampling settings replaced where given.

    `larger` keeps the settings of its larger size class, which are then the checkpoint's own.
    """
    transformer, info = load_transformer(paths["transformer"], dtype=torch.float32)
    return Pipeline(
        transformer,
        load_nano_text_encoder(paths["text_encoder"], dtype=torch.float32),
        load_vae(paths["vae"], dtype=torch.float32),
        replace(info.settings, larger=info.settings.larger if larger else None, **settings),
        info.tasks,
    )


def answer(pipeline: Pipeline, test: TestSet, question: HeldOut | EditQuestion) -> Row:
    """Make one clip or picture and judge it.

    Returns:
        What was asked, which rows are right, seconds, and for i2v the first frame's PSNR in dB.
    """
    size = pipeline.settings.default_size[0]
    if isinstance(question, EditQuestion):
        return _answer_edit(pipeline, question, size)
    image = render(question.scene, size, 1)[0] if test.task == "i2v" else None
    began = time.perf_counter()
    result = generate(
        pipeline,
        GenerateRequest(question.caption, task=test.task, image=image, seed=question.seed),
    )
    frames = np.stack(list(result.frames()))
    seconds = time.perf_counter() - began
    spec = question.scene.objects[0]
    row: Row = {
        "caption": question.caption,
        "language": question.language,
        "seed": question.seed,
        "asked": {"shape": spec.shape, "color": spec.color, "motion": spec.motion},
        "right": {k: bool(v) for k, v in correct(measure(frames), question.scene).items()},
        "seconds": round(seconds, 2),
    }
    if image is not None:
        row["psnr"] = round(psnr(frames[0], image), 2)
    return row


def _answer_edit(pipeline: Pipeline, question: EditQuestion, size: int) -> Row:
    image = render(question.edit.source, size, 1)[0]
    began = time.perf_counter()
    result = generate(
        pipeline,
        GenerateRequest(question.instruction, task="i2i", image=image, seed=question.seed),
    )
    frames = np.stack(list(result.frames()))
    return {
        "caption": question.instruction,
        "language": question.language,
        "seed": question.seed,
        "asked": {"edit": question.edit.kind},
        "right": judge_edit(measure(frames), question.edit),
        "seconds": round(time.perf_counter() - began, 2),
    }


def psnr(a: np.ndarray, b: np.ndarray) -> float:
    """Return peak signal-to-noise ratio of uint8 arrays, dB; 99 for equal ones."""
    error = float(np.mean((a.astype(np.float64) - b.astype(np.float64)) ** 2))
    return 99.0 if error == 0 else float(10 * np.log10(255**2 / error))


def work(
    group: Group,
    answers: Answers,
    paths: dict[str, Path],
    settings: dict[str, float],
    names: Sequence[str],
    count: int,
) -> None:
    """Answer this process's share of what is still open."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    pipeline = load(paths, settings)
    with answers.go_on(group) as (done, add):
        for test, index, question in _share(group, names, count):
            if (test.name, index) in done:
                continue
            row = answer(pipeline, test, question)
            add(test.name, index, row)
            if group.is_main and index % 10 == 0:
                logger.info("%s %d: %s", test.name, index, row["right"])


def _share(
    group: Group, names: Sequence[str], count: int
) -> Iterator[tuple[TestSet | EditSet, int, HeldOut | EditQuestion]]:
    for name in names:
        questions = list(enumerate(ALL_SETS[name].questions(count)))
        for index, question in questions[group.rank :: group.size]:
            yield ALL_SETS[name], index, question


def time_clips(pipeline: Pipeline, *, repeats: int = 3) -> float:
    """Return the median seconds of a default clip or edit, decoding included, after one to warm
    up."""
    request = GenerateRequest("a red circle moving right")
    if "t2v" not in pipeline.tasks:
        question = held_out_edits(1)[0]
        image = render(question.edit.source, pipeline.settings.default_size[0], 1)[0]
        request = GenerateRequest(question.instruction, task="i2i", image=image)
    seconds = []
    for _ in range(repeats + 1):
        began = time.perf_counter()
        list(generate(pipeline, request).frames())
        seconds.append(time.perf_counter() - began)
    return float(np.median(seconds[1:]))


def peak_memory_mb() -> float | None:
    """Return the largest resident memory of this process so far, MB; None where the system does not
    say."""
    try:
        import resource
    except ImportError:
        return None
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line; end with status 1 if `--floors` is given and a floor is missed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=Path, help="folder of weights; default: the bundled ones")
    parser.add_argument("--edit", action="store_true", help="judge the bundled edit model")
    parser.add_argument("--count", type=int, default=200, help="questions of each set, at most")
    parser.add_argument(
        "--sets", nargs="+", choices=list(ALL_SETS), help="default: those of the model's tasks"
    )
    parser.add_argument("--steps", type=int, help="sampling steps; default: the model's")
    parser.add_argument("--guidance", type=float, help="guidance scale; default: the model's")
    parser.add_argument("--shift", type=float, help="time shift; default: the model's")
    parser.add_argument("--answers", type=Path, default=Path("runs/evaluation"))
    told = parser.add_mutually_exclusive_group()
    told.add_argument("--report", type=Path, help="Markdown file to write; default: only print")
    told.add_argument(
        "--floors", action="store_true", help="no report; fail if the model looks broken"
    )
    parser.add_argument("--report-only", action="store_true", help="report what is answered so far")
    parser.add_argument("--processes", type=int, default=2)
    args = parser.parse_args(arguments)

    given = {"num_steps": args.steps, "guidance_scale": args.guidance, "shift": args.shift}
    settings = {name: value for name, value in given.items() if value is not None}
    paths = find_parts(args.model, edit=args.edit)
    answers = Answers(args.answers, checksum(paths, settings))
    tasks = identify(paths["transformer"]).tasks
    names = args.sets or [name for name, test in ALL_SETS.items() if test.task in tasks]
    if not args.report_only:
        share = (answers, paths, settings, names, args.count)
        launch(work, args.processes, *share, threads=1)
    wanted = {(name, i) for name in names for i in range(args.count)}
    rows = [row for place, row in sorted(answers.read().items()) if place in wanted]
    if args.floors:
        missed = failures(rows)
        if missed:
            raise SystemExit("below the floor: " + ", ".join(missed))
        return
    torch.set_num_threads(max(2, args.processes))
    pipeline = load(paths, settings)
    seconds = time_clips(pipeline)
    command = f"evaluate {'--edit ' * args.edit}--report {args.report or 'FILE'}"
    report = make_report(
        rows,
        answers.key,
        pipeline.settings,
        seconds,
        torch.get_num_threads(),
        peak_memory_mb(),
        command,
    )
    if args.report is not None:
        write_text(args.report, report)
    sys.stdout.write(report + "\n")


if __name__ == "__main__":
    main()
