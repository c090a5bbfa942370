"""Tables of MagCache ratios: those published with the checkpoints, and files of one's own.

`released.json` holds what kandinskylab/kandinsky-5 (commit 6e2a805) lists in its configs. No
tables were published for pretrain, distilled and image-edit checkpoints.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeGuard

from ..family.settings import SIZES_512, Release, SamplingSettings, Task
from ..files import write_text

FORMAT = "kandinsky_core.magcache_ratios"
VERSION = 1
LARGEST_FILE = 2**20
"""Bytes; a table of ratios takes a few thousand."""
LARGEST_RATIO = 1e6
"""No residual grows so much from one step to the next."""

_SIZE = {"video_lite": "lite", "video_pro": "pro", "image_lite": "lite"}
"""Variant -> its name in the reference's configs."""
_AREA_SD = max(height * width for height, width in SIZES_512)


@dataclass(frozen=True)
class MagRatios:
    """How the magnitude of the visual blocks' residual changes from step to step."""

    cond: tuple[float, ...]
    """Of steps 1, 2, ... to the step before each, with the prompt."""
    uncond: tuple[float, ...] | None
    """The same with the negative prompt; None where no guidance was used."""
    source: str
    """Whose they are, for messages."""

    def __post_init__(self) -> None:
        for name, column in (("cond", self.cond), ("uncond", self.uncond)):
            if column is None:
                continue
            strange = [ratio for ratio in column if not _is_ratio(ratio)]
            if strange or not column:
                raise ValueError(
                    f"{name} of {self.source} should be a list of numbers above 0, found "
                    f"{repr(strange[0])[:40] if strange else 'none'}; calibrate again"
                )
        if self.uncond is not None and len(self.uncond) != len(self.cond):
            raise ValueError(
                f"cond and uncond of {self.source} should be equally long, found "
                f"{len(self.cond)} and {len(self.uncond)} ratios; calibrate again"
            )

    def for_steps(self, branch: Literal["cond", "uncond"], num_steps: int) -> list[float] | None:
        """Return the ratios of a run with any number of steps.

        Args:
            branch: Which column.
            num_steps: Steps of the run.

        Returns:
            One ratio per step, the first step's 1 included; None if the column is not known.
        """
        column = self.cond if branch == "cond" else self.uncond
        return None if column is None else resample((1.0, *column), num_steps)


def _is_ratio(value: Any) -> bool:
    return isinstance(value, int | float) and value is not True and 0 < value < LARGEST_RATIO


def resample(ratios: tuple[float, ...], num_steps: int) -> list[float]:
    """Stretch or shrink a column to a number of steps by nearest neighbours, ends kept.

    Args:
        ratios: One per step of the calibrated run.
        num_steps: Steps of the run at hand.

    Returns:
        One per step; the last alone if there is one step.
    """
    if num_steps == 1:
        return [ratios[-1]]
    stride = (len(ratios) - 1) / (num_steps - 1)
    return [ratios[round(step * stride)] for step in range(num_steps)]


def describe_release(release: Release) -> str:
    """Return a checkpoint in words, e.g. "video_lite t2v 5 s sft"."""
    seconds = () if release.seconds is None else (f"{release.seconds} s",)
    return " ".join((release.variant, release.task, *seconds, release.stage))


def find_ratios(release: Release, settings: SamplingSettings) -> MagRatios:
    """Return the published ratios of a checkpoint.

    Args:
        release: Which checkpoint.
        settings: Its settings at the size class that will run.

    Returns:
        The ratios.

    Raises:
        ValueError: None were published for it.
    """
    size = _SIZE.get(release.variant)
    seconds = () if release.seconds is None else (f"{release.seconds}s",)
    resolution = "sd" if settings.area <= _AREA_SD else "hd"
    name = "_".join(("k5", str(size), release.task, *seconds, release.stage, resolution))
    if size is None or name not in _released():
        height, width = settings.default_size
        raise ValueError(
            f"no MagCache ratios were published for {describe_release(release)} at {height}x{width}"
            ": measure them once with `python -m kandinsky_core calibrate` and give the file "
            "(--magcache-ratios)"
        )
    return released_ratios(name)


def released_names() -> list[str]:
    """Return the names of the published ratios, e.g. "k5_lite_t2v_5s_sft_sd"."""
    return sorted(_released())


def released_ratios(name: str) -> MagRatios:
    """Return the published ratios of a name, for whom the checkpoint does not tell."""
    return _from_columns(_released()[name], name)


def _released() -> dict[str, Any]:
    path = Path(__file__).with_name("released.json")
    return json.loads(path.read_text(encoding="utf-8"))["tables"]


def describe_mismatch(
    measured_on: Mapping[str, Any],
    release: Release,
    settings: SamplingSettings,
    *,
    row: SamplingSettings,
    task: Task,
) -> str:
    """Return what a calibration was measured on that will not run.

    Args:
        measured_on: What was noted about it, from `load_ratios`; a size or a task that was not
            noted is not compared.
        release: The checkpoint that will run.
        settings: Its settings, from the smallest size class.
        row: Those of the size class that will run.
        task: What will be made from what.

    Returns:
        The rest of a sentence that starts with the ratios' name; empty if all is alike.
    """
    unlike: list[str] = []
    measured, wanted = measured_on.get("release"), describe_release(release)
    if measured != wanted:
        unlike.append(f"on {measured or 'an unknown checkpoint'}, not on {wanted}")
    size = measured_on.get("size")
    if _is_size(size) and settings.for_size(*size) != row:
        around = "x".join(map(str, row.default_size))
        unlike.append(f"at {size[0]}x{size[1]}, not at sizes around {around}")
    if measured_on.get("task", task) != task:
        unlike.append(f"for {measured_on['task']}, not for {task}")
    if not unlike:
        return ""
    return f"was measured {'; '.join(unlike)}: it may skip the wrong steps, calibrate for this"


def _is_size(value: Any) -> TypeGuard[list[int]]:
    return (
        isinstance(value, list)
        and len(value) == 2
        and all(isinstance(side, int) and side > 0 for side in value)
    )


def load_ratios(path: str | Path) -> tuple[MagRatios, dict[str, Any]]:
    """Read ratios that `save_ratios` wrote.

    Args:
        path: The JSON file.

    Returns:
        The ratios, and what was noted about the run they come from.

    Raises:
        ValueError: The file does not exist or is not such a file.
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"{path} does not exist: give a file that `calibrate` wrote")
    described = None
    try:
        if path.stat().st_size <= LARGEST_FILE:
            described = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ValueError(f"{path} cannot be read ({error.strerror or error})") from error
    except (ValueError, RecursionError):
        pass  # said below, with everything else that is no such file
    if not isinstance(described, dict) or described.get("format") != FORMAT:
        raise ValueError(
            f"{path} is not a file of MagCache ratios: give one that `calibrate` wrote"
        )
    if described.get("version") != VERSION:
        raise ValueError(
            f"{path} is of version {described.get('version')!r} and this package reads version "
            f"{VERSION}: update the package, or calibrate again"
        )
    measured = described.get("measured_on")
    return _from_columns(described, path.name), measured if isinstance(measured, dict) else {}


def save_ratios(path: str | Path, ratios: MagRatios, measured_on: Mapping[str, Any]) -> None:
    """Write ratios as JSON; an existing file is replaced only by a whole one.

    Args:
        path: Where to; its folder must exist.
        ratios: What was measured.
        measured_on: The run they come from, as plain values.

    Raises:
        OutputError: The file cannot be written.
    """
    described = {
        "format": FORMAT,
        "version": VERSION,
        "measured_on": dict(measured_on),
        "cond": ratios.cond,
        "uncond": ratios.uncond,
    }
    text = json.dumps(described, ensure_ascii=False, indent=1) + "\n"
    write_text(path, text)


def _from_columns(described: Mapping[str, Any], source: str) -> MagRatios:
    cond, uncond = (described.get(name) for name in ("cond", "uncond"))
    return MagRatios(_column(cond), None if uncond is None else _column(uncond), source)


def _column(values: Any) -> tuple[Any, ...]:
    """Return what `MagRatios` can check; anything but a list becomes an empty column, which it
    refuses."""
    return tuple(values) if isinstance(values, list) else ()
