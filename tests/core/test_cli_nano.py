"""The command line on the bundled model: what a run reads, and what it makes of given frames."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from kandinsky_core import generate as making
from kandinsky_core.__main__ import main
from kandinsky_core.weights import header

Run = Callable[..., int]


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Runs `generate` in two steps, in a folder of its own."""
    monkeypatch.chdir(tmp_path)

    def generate(*options: object, prompt: str = "a red circle moves to the right") -> int:
        return main(["generate", prompt, "--steps", "2", *map(str, options)])

    return generate


def counting(calls: Counter[str], name: Callable[..., str], function: Callable) -> Callable:
    """A function that counts its calls by name."""

    def counted(*args: object, **kwargs: object) -> object:
        calls[name(*args)] += 1
        return function(*args, **kwargs)

    return counted


def test_a_run_reads_each_header_once_and_settles_once(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    headers: Counter[str] = Counter()
    read = counting(headers, lambda path: path.name, header._read_file_header)
    monkeypatch.setattr(header, "_read_file_header", read)
    settled: Counter[str] = Counter()
    settle = counting(settled, lambda _, request: request.prompt, making.settle)
    monkeypatch.setattr(making, "settle", settle)
    assert run("--task", "t2i", prompt="a red circle") == 0
    parts = ("transformer", "text_encoder", "vae")
    assert headers == {f"{part}.safetensors": 1 for part in parts}
    assert settled == {"a red circle": 1}
