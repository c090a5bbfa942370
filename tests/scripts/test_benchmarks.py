"""The benchmarks at toy sizes: that they run and what their report says of known figures."""

from __future__ import annotations

import json
import subprocess
import sys
import time

import pytest

from tooling.environment import ROOT

PROGRAM = """
import sys
sys.path.insert(0, sys.argv[1])
from benchmarks.__main__ import main
main(sys.argv[2:])
"""


@pytest.mark.slow
@pytest.mark.parametrize("group", ["attention", "model", "vae", "family"])
def test_every_group_runs_at_toy_sizes(group, tmp_path):
    command = [sys.executable, "-c", PROGRAM, str(ROOT), "--quick", "--groups", group]
    subprocess.run([*command, "--out", str(tmp_path)], check=True, cwd=tmp_path)
    data = json.loads((tmp_path / "results.json").read_text())
    assert {case["group"] for case in data["cases"]} == {group}
    for case in data["cases"]:
        assert len(case["readings"]) >= 2
        assert all(each["seconds"] > 0 for each in case["readings"].values())
    report = (tmp_path / "report.md").read_text()
    assert all(case["name"] in report for case in data["cases"])


@pytest.fixture
def benchmarks(monkeypatch):
    """The package, which lies outside the installed ones."""
    monkeypatch.syspath_prepend(str(ROOT))
    import benchmarks.case
    import benchmarks.measure
    import benchmarks.report

    yield benchmarks
    for name in [name for name in sys.modules if name.split(".")[0] == "benchmarks"]:
        del sys.modules[name]


def test_candidates_take_turns_and_medians_are_told(benchmarks):
    order = []
    runs = {
        "short": lambda: (order.append("short"), time.sleep(0.06)),
        "long": lambda: (order.append("long"), time.sleep(0.12)),
    }
    readings = benchmarks.measure.compare(runs, repeats=3)
    assert order[-6:] == ["short", "long"] * 3
    assert readings["short"].seconds == pytest.approx(0.06, rel=0.5)
    assert readings["long"].low <= readings["long"].seconds <= readings["long"].high


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs Linux's /proc")
def test_peak_memory_is_what_was_taken(benchmarks):
    import numpy as np

    peak = benchmarks.measure.peak_bytes(lambda: np.ones(64 << 20, np.uint8).sum())
    assert 60 << 20 < peak < 100 << 20


def test_report_judges_speed_and_memory(benchmarks):
    reading, case = benchmarks.measure.Reading, benchmarks.case
    readings = {"peer": reading(1.0, 1.0, 1.0, 3, 100), "ours": reading(0.4, 0.4, 0.4, 3, 70)}
    goals = (
        case.Goal("ours", "peer", 3.0, 2.0),
        case.Goal("ours", "peer", 5.0, 4.0),
        case.Goal("ours", "peer", 0.75, 0.8, memory=True),
    )
    result = case.Result(case.Case("vae", "decode", dict, goals), readings)
    assert [result.ratio(goal) for goal in goals] == pytest.approx([2.5, 2.5, 0.7])
    text = benchmarks.report.as_markdown([result], {"threads": 2})
    judged = [line for line in text.splitlines() if "ours against peer" in line]
    assert [line.split("|")[-2].strip() for line in judged] == ["reached", "**missed**", "goal met"]
