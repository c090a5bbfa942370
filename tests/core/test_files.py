"""Files are written whole or not at all, and no writer goes its own way."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from kandinsky_core import files
from kandinsky_core.errors import OutputError
from kandinsky_core.files import atomic_write, write_text

ROOT = Path(__file__).resolve().parents[2]
OLD, NEW = "the old text", "новый текст\n"


def names(folder):
    return [path.name for path in folder.iterdir()]


def test_a_text_is_written_in_utf_8(tmp_path):
    path = tmp_path / "report.md"
    path.write_text(OLD, encoding="utf-8")
    write_text(path, NEW)
    assert path.read_bytes() == NEW.encode("utf-8")
    assert names(tmp_path) == ["report.md"]


class FullDisk:
    """A file system that takes half of a text, as one that runs full does."""

    def __init__(self, monkeypatch):
        self.reached = False
        whole = Path.write_text

        def half(path, text, *args, **kwargs):
            self.reached = True
            whole(path, text[: len(text) // 2], *args, **kwargs)
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(Path, "write_text", half)


def test_a_text_that_is_cut_short_leaves_the_old_one(tmp_path, monkeypatch):
    path = tmp_path / "report.md"
    path.write_text(OLD, encoding="utf-8")
    disk = FullDisk(monkeypatch)
    with pytest.raises(OutputError, match="No space left on device"):
        write_text(path, NEW)
    assert disk.reached
    assert path.read_text(encoding="utf-8") == OLD
    assert names(tmp_path) == ["report.md"]


def test_a_stopped_writer_leaves_the_old_file(tmp_path):
    path = tmp_path / "weights.bin"
    path.write_bytes(b"old")
    with pytest.raises(KeyboardInterrupt), atomic_write(path) as part:
        part.write_bytes(b"ne")
        raise KeyboardInterrupt
    assert path.read_bytes() == b"old"
    assert names(tmp_path) == ["weights.bin"]


def writes_past_it(path: Path) -> list[str]:
    """Return calls that put text or bytes into a file other than the `part` of `atomic_write`."""
    found = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)):
            continue
        target, method = ast.unparse(node.func.value), node.func.attr
        modes = [a.value for a in node.args if isinstance(a, ast.Constant)]
        rewrites = method == "open" and any(str(mode)[:1] in ("w", "x") for mode in modes)
        into_part = any(isinstance(n, ast.Name) and n.id == "part" for n in ast.walk(node))
        if (method in ("write_text", "write_bytes") or rewrites) and not into_part:
            found.append(f"{path.relative_to(ROOT)}:{node.lineno} {target}.{method}")
    return found


def test_every_writer_of_the_core_and_of_the_benchmarks_uses_it():
    own = {Path(files.__file__).resolve(), ROOT / "benchmarks" / "meter.py"}  # it and /proc
    paths = [p for top in ("kandinsky_core", "benchmarks") for p in (ROOT / top).rglob("*.py")]
    assert len(paths) > 100
    assert [each for path in paths if path not in own for each in writes_past_it(path)] == []
