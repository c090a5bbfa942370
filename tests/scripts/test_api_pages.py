"""`make docs` on one small module: pdoc takes our options and our docstrings."""

from __future__ import annotations

import sys

import pytest

from tooling import api_pages


def test_pages_show_docstrings_as_sections(tmp_path):
    pytest.importorskip("pdoc", reason="pdoc comes with the extra `docs`")
    assert api_pages.run_pdoc(sys.executable, tmp_path, "kandinsky_core.files") == 0
    page = (tmp_path / "kandinsky_core" / "files.html").read_text(encoding="utf-8")
    assert "write_text" in page and "Arguments:" in page and "Raises:" in page


def test_an_unknown_module_fails(tmp_path):
    pytest.importorskip("pdoc", reason="pdoc comes with the extra `docs`")
    assert api_pages.run_pdoc(sys.executable, tmp_path, "kandinsky_core.no_such_part") != 0
