"""The same typed job through every door gets the same answer or the same sentence.

The doors are the command line's `generate` and `plan`, K5_Settings, K5_PlanMemory, and these two
nodes in a row. A door is asked where it has every field that the job types, and answers what it
can say; zeros, which at nodes mean "as the checkpoint", are typed at the command line only.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass, fields, replace
from io import StringIO
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from kandinsky_core import generate as making
from kandinsky_core.__main__ import main
from kandinsky_core.cli import generate as generate_command
from kandinsky_core.family.settings import Release
from kandinsky_core.family.variants import VAE_OF, VAES
from kandinsky_core.pipeline import Pipeline
from kandinsky_core.video import write_image

RELEASES = {
    "Pro 5 s": Release("video_pro", "t2v", 5, "sft"),
    "Pro image to video": Release("video_pro", "i2v", 5, "sft"),
    "Lite 10 s distilled": Release("video_lite", "t2v", 10, "distilled"),
    "Image": Release("image_lite", "t2i", None, "sft"),
}
BUNDLED = {"nano": ("nano (bundled)", "t2v"), "nano-edit": ("nano edit (bundled)", "i2i")}
"""Name at the command line -> name at the loader, and the task it is for."""
HEADLINE = re.compile(
    r"(\w+): (\d+)x(\d+)(?:, (\d+) frames)?: .* tokens, (dense|NABLA) .*; (\d+) steps( with guid)?"
)


@dataclass(frozen=True)
class TypedJob:
    """What a person types, of which checkpoint; None is left out."""

    checkpoint: str
    task: str | None
    size_class: str | None
    size: tuple[int, int] | None
    frames: int | None
    steps: int | None
    cfg: float | None
    shift: float | None
    rope_scale: float | None
    attention: str | None
    nabla_p: float | None

    @property
    def typed(self) -> set[str]:
        return {
            each.name
            for each in fields(self)
            if each.name != "checkpoint" and getattr(self, each.name) is not None
        }

    @property
    def has_zeros(self) -> bool:
        return any(getattr(self, each) == 0 for each in self.typed)


NANO_SIZES = ((128, 128), (256, 256), (192, 160))
SIZES = ((512, 768), (768, 1280), (640, 640), (528, 784), (1024, 1024))
VALUES: dict[str, tuple[object, ...]] = {
    "task": ("t2v", "i2v", "t2i", "i2i"),
    "size_class": ("auto", "small", "large"),
    "size": SIZES,
    "frames": (1, 17, 25, 121, 241),
    "steps": (1, 30),
    "cfg": (1.0, 3.5),
    "shift": (2.0, 7.5),
    "rope_scale": (1.0, 2.5),
    "attention": ("dense", "nabla"),
    "nabla_p": (0.25, 1.0),
}
"""Field -> what is typed there; some of it does not go together."""
WRONG: dict[str, tuple[object, ...]] = {
    "size": ((520, 768), (4096, 128)),
    "frames": (0, 18, 513),
    "steps": (0,),
    "cfg": (float("nan"),),
    "shift": (0.0,),
    "rope_scale": (0.0, -1.0),
    "nabla_p": (1.5, -0.5),
}
"""Field -> what no model takes."""
FIELDS: dict[str, tuple[str, ...]] = {
    "generate": tuple(VALUES),
    "plan": ("task", "size_class", "size", "frames", "steps", "cfg", "attention", "nabla_p"),
    "K5_Settings": tuple(name for name in VALUES if name != "task"),
    "K5_PlanMemory": ("size", "frames", "cfg"),
}
"""Door -> what may be typed there; a job is made for one of them and sent to all that take it."""
NEEDED = {"K5_PlanMemory": ("size", "frames")}
"""Door -> what must be."""


@st.composite
def jobs(draw: st.DrawFn, door: str) -> TypedJob:
    """Return some fields of some checkpoint, now and then with one that no model takes."""
    checkpoint = draw(st.sampled_from([*BUNDLED, *RELEASES]))
    wrong = draw(st.sampled_from([*[None] * len(WRONG), *WRONG]))
    values: dict[str, Any] = dict.fromkeys(VALUES)
    for name in FIELDS[door]:
        if name in NEEDED.get(door, ()) or draw(st.integers(0, 2)) == 0:
            choices = WRONG[name] if name == wrong else VALUES[name]
            if name == "size" and name != wrong and checkpoint in BUNDLED:
                choices = NANO_SIZES
            values[name] = draw(st.sampled_from(choices))
    return TypedJob(checkpoint, **values)


NOTHING: dict[str, Any] = dict.fromkeys(VALUES)
ZERO_FRAMES = TypedJob("nano", **{**NOTHING, "frames": 0})
P_OUT_OF_RANGE = TypedJob("Pro 5 s", **{**NOTHING, "attention": "nabla", "nabla_p": 1.5})


class SampledError(Exception):
    """Raised in place of what comes after settling; holds what was settled."""


@pytest.fixture
def doors(host, run, load_model, save_tiny, tiny_config, tmp_path, monkeypatch):
    """Door -> what it has, and `ask(job) -> answer or sentence`."""
    monkeypatch.chdir(tmp_path)
    files, models, main_tasks = {}, {}, {}
    for name, (listed, task) in BUNDLED.items():
        files[name], models[name], main_tasks[name] = name, load_model(listed), task
    for name, release in RELEASES.items():
        config = replace(tiny_config, visual_cond=release.task != "t2i")
        file = save_tiny(f"{name}.safetensors".replace(" ", "_"), config, **release._asdict())
        files[name] = str(host.base / "models" / "diffusion_models" / file)
        models[name], main_tasks[name] = load_model(file), release.task
    picture = tmp_path / "picture.png"
    write_image(picture, np.zeros((60, 90, 3), np.uint8))

    def no_parts(_args, info):
        vae = SimpleNamespace(config=VAES[VAE_OF[info.release.variant]])
        network = SimpleNamespace(config=info.config)
        return Pipeline(network, None, vae, info.settings, info.tasks)

    def no_sampling(_pipeline, _request, settled):
        raise SampledError(settled)

    monkeypatch.setattr(generate_command, "load_parts", no_parts)
    monkeypatch.setattr(making, "prepare", no_sampling)

    def command(*words: object) -> str:
        """Run it; returns what it prints or raises its sentence as ValueError."""
        out, err = StringIO(), StringIO()
        with redirect_stdout(out), redirect_stderr(err):
            status = main([str(word) for word in words])
        if status:
            raise ValueError(err.getvalue().removeprefix("error: ").strip())
        return out.getvalue()

    def options(job: TypedJob, *names: str) -> list[object]:
        given = [(name, getattr(job, name)) for name in names if getattr(job, name) is not None]
        return [word for name, value in given for word in (f"--{name.replace('_', '-')}", value)]

    shared = [name for name in FIELDS["plan"] if name != "size"]

    def by_generate(job: TypedJob) -> dict[str, Any]:
        words = ["generate", "a", "--model", files[job.checkpoint], *options(job, *shared, "shift")]
        if job.size:
            words += ["--height", job.size[0], "--width", job.size[1]]
        if job.rope_scale is not None:
            words += ["--rope-scale", 1, job.rope_scale, job.rope_scale]
        with_image = (job.task or main_tasks[job.checkpoint]) in ("i2v", "i2i")
        if with_image:
            words += ["--image", picture]
        try:
            command(*words)
        except SampledError as sampled:
            (found,) = sampled.args
        made, shape = found.settings, found.shape
        answer = {
            "task": found.task,
            "size": shape.size,
            "frames": shape.num_frames,
            "steps": made.num_steps,
            "guided": made.guidance_scale != 1,
            "cfg": made.guidance_scale,
            "shift": made.shift,
            "RoPE scale": ", ".join(f"{scale:g}" for scale in made.rope_scale),
            "attention": made.attention,
            "P": f"{made.nabla_p:g}" if made.attention == "nabla" else None,
            "negative": made.negative_prompt,
        }
        if with_image and not job.size:
            del answer["size"]  # the other doors do not know the image
        return answer

    def planned(report: str) -> dict[str, Any]:
        task, height, width, frames, attention, steps, guided = HEADLINE.match(report).groups()
        return {
            "task": task,
            "size": (int(height), int(width)),
            "frames": int(frames or 1),
            "steps": int(steps),
            "guided": bool(guided),
            "attention": attention.lower(),
        }

    def by_plan(job: TypedJob) -> dict[str, Any]:
        words = ["plan", "--model", files[job.checkpoint], *options(job, *shared)]
        if job.size:
            words += ["--size", "{}x{}".format(*job.size)]
        return planned(command(*words))

    def settings_node(job: TypedJob) -> tuple[Any, ...]:
        height, width = job.size or (0, 0)
        return run(
            "K5_Settings",
            model=models[job.checkpoint],
            size_class=job.size_class or "auto",
            width=width,
            height=height,
            length=job.frames or 0,
            steps=job.steps or 0,
            cfg=job.cfg or 0.0,
            shift=job.shift or 0.0,
            rope_scale=job.rope_scale or 0.0,
            attention=job.attention or "auto",
            cdf_threshold=job.nabla_p or 0.0,
        )

    def by_settings(job: TypedJob) -> dict[str, Any]:
        steps, cfg, shift, _, width, height, frames, _, negative, report = settings_node(job)
        lines = (line.split(": ", 1) for line in report.splitlines()[1:])
        said = {name: text.split(" (")[0] for name, text in lines}
        return {
            "size": (height, width),
            "frames": frames,
            "steps": steps,
            "guided": cfg != 1,
            "cfg": cfg,
            "shift": shift,
            "RoPE scale": said["RoPE scale"],
            "attention": said["attention"],
            "P": said.get("P"),
            "negative": negative,
        }

    def plan_node(model: Any, size: tuple[int, int], frames: int, cfg: float) -> dict[str, Any]:
        height, width = size
        given = {"width": width, "height": height, "length": frames, "cfg": cfg}
        report, _ = run("K5_PlanMemory", model=model, guidance=True, memory_gb=1024.0, **given)
        return planned(report)

    def by_plan_node(job: TypedJob) -> dict[str, Any]:
        return plan_node(models[job.checkpoint], job.size, job.frames, job.cfg or 0.0)

    def by_both_nodes(job: TypedJob) -> dict[str, Any]:
        _, cfg, _, _, width, height, frames, model, _, _ = settings_node(job)
        answer = plan_node(model, (height, width), frames, cfg)
        del answer["steps"]  # a MODEL does not carry them
        return answer

    by_door: dict[str, tuple[str, Callable[[TypedJob], dict[str, Any]]]] = {
        "generate": ("generate", by_generate),
        "plan": ("plan", by_plan),
        "K5_Settings": ("K5_Settings", by_settings),
        "K5_PlanMemory": ("K5_PlanMemory", by_plan_node),
        "both nodes": ("K5_Settings", by_both_nodes),
    }

    def takes(door: str, job: TypedJob) -> bool:
        """Whether a door has what the job types, and the job what the door needs."""
        has = set(FIELDS[door])
        if door.startswith("K5_"):
            if job.has_zeros:
                return False
            if job.task == main_tasks[job.checkpoint]:
                has.add("task")
        return set(NEEDED.get(door, ())) <= job.typed <= has

    def answers(job: TypedJob) -> dict[str, dict[str, Any] | str]:
        """Door -> answer or sentence, of the doors that take the job."""
        found: dict[str, dict[str, Any] | str] = {}
        for name, (door, ask) in by_door.items():
            if takes(door, job):
                try:
                    found[name] = ask(job)
                except ValueError as error:
                    found[name] = str(error)
        return found

    return answers


@pytest.mark.parametrize("made_for", FIELDS)
def test_every_door_gives_the_same_answer_or_the_same_sentence(doors, made_for):
    answered, refused = Counter(), Counter()

    @settings(
        max_examples=100,
        derandomize=True,
        deadline=None,
        database=None,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
    )
    @example(ZERO_FRAMES)
    @example(P_OUT_OF_RANGE)
    @given(jobs(made_for))
    def ask(job: TypedJob) -> None:
        found = doors(job)
        reference = found["generate"]
        for door, answer in found.items():
            if isinstance(reference, str) or isinstance(answer, str):
                assert answer == reference, f"{door}: {job}"
            else:
                common = answer.keys() & reference.keys()
                assert {name: answer[name] for name in common} == {
                    name: reference[name] for name in common
                }, f"{door}: {job}"
            (refused if isinstance(answer, str) else answered)[door] += 1

    ask()
    assert answered[made_for] >= 10, (answered, refused)
    assert refused[made_for] >= 3, (answered, refused)
