"""Writing files so that a reader sees the old one or the whole new one, never half of it."""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from .errors import OutputError

CACHE_VARIABLE = "KANDINSKY_CORE_CACHE"
"""Environment variable that moves the folder of what can be made again."""


def cache_folder() -> Path:
    """Return where what can be made again is kept, such as built libraries; it need not exist."""
    given = os.environ.get(CACHE_VARIABLE)
    if given:
        return Path(given)
    base = os.environ.get("LOCALAPPDATA") or os.environ.get("XDG_CACHE_HOME")
    return Path(base or Path.home() / ".cache") / "kandinsky_core"


def check_writable(path: str | Path) -> None:
    """Refuse a path before the work whose result should go there.

    Args:
        path: Where a file should be; an existing one may be replaced.

    Raises:
        OutputError: The folder does not exist or is read-only, or the path is a folder.
    """
    path = Path(path)
    if not path.parent.is_dir():
        raise OutputError(f"{path} cannot be written: the folder {path.parent} does not exist.")
    if path.is_dir():
        raise OutputError(f"{path} cannot be written: it is a folder, give a file name in it.")
    if not os.access(path.parent, os.W_OK):
        raise OutputError(
            f"{path} cannot be written: the folder {path.parent} is read-only; choose another."
        )


@contextmanager
def atomic_write(path: str | Path) -> Iterator[Path]:
    """Give a temporary path beside `path`, and rename it to `path` when the block succeeds.

    The temporary file keeps the suffix, because writers choose a format by it. If the block
    fails, nothing is left behind and an earlier file at `path` stays as it was.

    Args:
        path: Where the file should be; its folder must exist.

    Yields:
        The path to write to.

    Raises:
        OutputError: The folder does not exist, or the operating system refused to write.
    """
    path = Path(path)
    check_writable(path)
    part = path.with_name(f".{path.stem}.{uuid.uuid4().hex[:8]}.part{path.suffix}")
    try:
        yield part
        with part.open("rb+") as file:
            os.fsync(file.fileno())
        part.replace(path)
    except OSError as error:
        reason = error.strerror or str(error)
        raise OutputError(
            f"{path} could not be written ({reason}): nothing was changed; "
            "free some space or choose another folder."
        ) from error
    finally:
        part.unlink(missing_ok=True)


def write_text(path: str | Path, text: str) -> None:
    """Write a text in UTF-8 as a whole, or leave an earlier file at `path` as it was.

    Args:
        path: Where the file should be; its folder must exist.
        text: All that the file will hold.

    Raises:
        OutputError: The folder does not exist, or the operating system refused to write.
    """
    with atomic_write(path) as part:
        part.write_text(text, encoding="utf-8")
