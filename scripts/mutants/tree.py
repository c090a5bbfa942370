"""A copy of one commit, in which faults are planted: the working tree is never touched."""

from __future__ import annotations

import compileall
import io
import py_compile
import subprocess
import tarfile
from collections.abc import Iterator
from contextlib import contextmanager

from tooling.environment import CACHE, ROOT

FOLDERS = ("attention", "flow", "models", "checkpoint", "weights", "family", "training")
"""Of the core, whose faults are planted."""
TESTS = ("tests/core", "tests/parity")
"""What is asked; the other tests need a ComfyUI."""


class Tree:
    """The copy and, beside it, what was found about it.

    Args:
        commit: Any name that git knows for it.
    """

    def __init__(self, commit: str) -> None:
        self.commit = _git("rev-parse", "--verify", f"{commit}^{{commit}}").decode().strip()
        self.folder = CACHE.resolve() / "mutants" / self.commit[:12]
        self.root = self.folder / "tree"

    def make(self) -> None:
        """Copy the commit unless it is there."""
        done = self.folder / "copied"
        if done.exists():
            return
        self.root.mkdir(parents=True, exist_ok=True)
        with tarfile.open(fileobj=io.BytesIO(_git("archive", self.commit))) as archive:
            archive.extractall(self.root, filter="data")
        # what a test looks for in the cache (a ComfyUI, tokenizers) is shared
        (self.root / ".cache").symlink_to(CACHE, target_is_directory=True)
        # compiled code that is told by its source, not by its age: a fault takes less than a tick
        checked = py_compile.PycInvalidationMode.CHECKED_HASH
        compileall.compile_dir(self.root, quiet=1, invalidation_mode=checked)
        done.touch()

    def sources(self, folder: str) -> list[str]:
        """Files of a folder of the core, relative to the copy, sorted."""
        found = (self.root / "kandinsky_core" / folder).rglob("*.py")
        return sorted(path.relative_to(self.root).as_posix() for path in found)

    def read(self, file: str) -> str:
        """Return the file as it was committed, whatever is planted in it."""
        return _git("show", f"{self.commit}:{file}").decode()

    @contextmanager
    def planted(self, file: str, source: str) -> Iterator[None]:
        """Hold `source` in a file of the copy for as long as the context lasts."""
        path = self.root / file
        path.write_text(source, encoding="utf-8")
        try:
            yield
        finally:
            path.write_text(self.read(file), encoding="utf-8")

    def restore(self, files: list[str]) -> None:
        """Undo what an interrupted run may have left planted."""
        for file in files:
            original = self.read(file)
            if (self.root / file).read_text(encoding="utf-8") != original:
                (self.root / file).write_text(original, encoding="utf-8")


def _git(*arguments: str) -> bytes:
    return subprocess.run(["git", *arguments], cwd=ROOT, check=True, stdout=subprocess.PIPE).stdout
