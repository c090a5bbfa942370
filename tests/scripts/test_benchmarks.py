"""The benchmarks at toy sizes: that they run and what their report says of known figures."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import pytest
import torch

from tooling.environment import ROOT

PROGRAM = """
import sys
sys.path.insert(0, sys.argv[1])
from benchmarks.__main__ import main
main(sys.argv[2:])
"""


needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


@pytest.mark.slow
@pytest.mark.parametrize(
    "device", ["cpu", pytest.param("cuda", marks=[pytest.mark.gpu, needs_cuda])]
)
@pytest.mark.parametrize("group", ["attention", "model", "vae", "family"])
def test_every_group_runs_at_toy_sizes(group, device, tmp_path):
    command = [sys.executable, "-c", PROGRAM, str(ROOT), "--quick", "--groups", group]
    subprocess.run([*command, "--device", device, "--out", str(tmp_path)], check=True, cwd=tmp_path)
    groups = json.loads((tmp_path / "results.json").read_text())["groups"]
    assert list(groups) == [group]
    report = (tmp_path / "report.md").read_text()
    for case in groups[group]["cases"]:
        assert len(case["readings"]) >= 2
        assert all(each["seconds"] > 0 for each in case["readings"].values())
        assert case["name"] in report


def test_candidates_take_turns_and_medians_are_told(benchmark):
    order = []
    runs = {
        "short": lambda: (order.append("short"), time.sleep(0.06)),
        "long": lambda: (order.append("long"), time.sleep(0.12)),
    }
    readings = benchmark("measure").compare(runs, benchmark("meter").HostMeter(), repeats=3)
    assert order[-6:] == ["short", "long"] * 3
    assert readings["short"].seconds == pytest.approx(0.06, rel=0.5)
    assert readings["long"].low <= readings["long"].seconds <= readings["long"].high


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs Linux's /proc")
def test_peak_memory_is_what_was_taken(benchmark):
    import numpy as np

    peak = benchmark("meter").HostMeter().peak_bytes(lambda: np.ones(64 << 20, np.uint8).sum())
    assert 60 << 20 < peak < 100 << 20


@dataclass
class FakeCuda:
    """A device that works for a while after it was called, as torch.cuda shows one."""

    queued: float = 0.0
    allocated: int = 1000
    peak: int = 9999
    calls: list = field(default_factory=list)

    def launch(self, seconds, taken=0):
        self.queued += seconds
        self.peak = max(self.peak, self.allocated + taken)

    def synchronize(self):
        time.sleep(self.queued)
        self.queued = 0.0

    def reset_peak_memory_stats(self):
        self.peak = self.allocated

    def memory_allocated(self):
        return self.allocated

    def max_memory_allocated(self):
        assert not self.queued, "read before the work was done"
        return self.peak


def test_work_behind_a_queue_is_waited_for(benchmark):
    cuda = FakeCuda()
    meter = benchmark("meter").AcceleratorMeter(cuda)
    runs = {"short": lambda: cuda.launch(0.06, 500), "long": lambda: cuda.launch(0.12, 700)}
    readings = benchmark("measure").compare(runs, meter, repeats=3)
    assert readings["short"].seconds == pytest.approx(0.06, rel=0.5)
    assert readings["long"].seconds == pytest.approx(0.12, rel=0.5)
    assert [readings[name].peak_bytes for name in runs] == [500, 700]


def test_a_device_without_a_peak_has_none(benchmark):
    class Mps:
        def synchronize(self):
            pass

    assert benchmark("meter").AcceleratorMeter(Mps()).peak_bytes(pytest.fail) is None


@pytest.mark.parametrize("device", ["cuda", "mps"])
def test_a_missing_device_is_one_sentence(device, benchmark, monkeypatch, capsys):
    main = benchmark("__main__").main
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    with pytest.raises(SystemExit):
        main(["--device", device])
    error = capsys.readouterr().err.splitlines()[-1]
    assert f"--device {device}: torch {torch.__version__} finds cpu here and no {device}" in error


def test_networks_and_inputs_are_on_the_device(benchmark):
    """The meta device computes shapes alone, and refuses tensors that were left on the CPU."""
    meta = torch.device("meta")
    model, vae = benchmark("model"), benchmark("vae")
    qkv, block_map = benchmark("attention").make_inputs(128, 0.5, 64, torch.float32, meta)
    assert {x.device for x in (*qkv, block_map.kept)} == {meta}
    config = replace(vae.SMALL, block_out_channels=(32, 32, 32, 32))
    toys = (
        model.dense(model.SMALL, (1, 4, 4), torch.float32, meta),
        vae.decode(config, (2, 4, 4), torch.float32, meta),
        vae.encode(config, (2, 4, 4), torch.float32, meta),
        vae.decode(vae.SMALL_IMAGE, (1, 4, 4), torch.float32, meta),
    )
    for runs in toys:
        for run in runs.values():
            out = run()
            if not isinstance(out, torch.Tensor):  # diffusers wraps what its autoencoder returns
                out = out.sample if "sample" in out else out.latent_dist.mean
            assert out.device == meta


def test_a_device_measures_only_what_runs_on_it(benchmark, monkeypatch):
    attention = benchmark("attention")
    monkeypatch.setattr(attention, "missing", lambda _: None)
    monkeypatch.setattr(attention, "load_backend", lambda name: name)
    cpu, cuda, mps = (torch.device(name) for name in ("cpu", "cuda", "mps"))
    assert list(attention.backends(cpu, torch.bfloat16)) == ["gathered", "compiled", "flex"]
    assert list(attention.backends(cuda, torch.bfloat16)) == ["gathered", "flex", "block_sparse"]
    assert list(attention.backends(cuda, torch.float32)) == ["gathered", "flex"]
    assert list(attention.backends(mps, torch.float32)) == ["gathered"]
    busy = [
        [case.name for case in attention.cases(False, device) if "busy" in case.name]
        for device in (cpu, cuda)
    ]
    assert [len(names) for names in busy] == [1, 0]


def toy_case(module, group, name, goals=()):
    """Return a case that takes no time to speak of."""
    run = partial(time.sleep, 0.001)
    return module.Case(group, name, lambda: {"peer": run, "ours": run}, goals, repeats=3)


def test_goals_hold_on_their_device(benchmark):
    case, main = benchmark("case"), benchmark("__main__")
    goals = (
        case.Goal("ours", "peer", 2.0, 1.0),
        case.Goal("ours", "peer", 3.0, 1.0, device="cuda"),
    )
    toy = toy_case(case, "vae", "decode", goals)
    for device, goal in (("cpu", 2.0), ("cuda", 3.0)):
        result = main.run(toy, torch.device(device), benchmark("meter").HostMeter())
        assert [each.goal for each in result.goals] == [goal]


def test_what_was_predicted_for_cuda_is_judged_there(benchmark, monkeypatch):
    monkeypatch.setattr(benchmark("attention"), "missing", lambda _: None)
    device = torch.device("cuda")
    judged = {
        case.name: [(goal.ours, goal.peer) for goal in case.goals if goal.device == "cuda"]
        for group in ("attention", "model")
        for case in benchmark(group).cases(False, device)
        if any(goal.device == "cuda" for goal in case.goals)
    }
    kernels = [("flex", "sdpa dense"), ("block_sparse", "sdpa dense")]
    assert judged == {
        "32768 tokens, 10%, head dim 64, bf16": kernels,
        "65536 tokens, 10%, head dim 64, bf16": kernels,
        "32768 tokens, 10%, head dim 128, bf16": kernels,
        "sparse step of one block of Lite's width, 93696 tokens, 10 %, bf16": [
            ("ours sparse, flex", "ours dense")
        ],
    }


def test_groups_that_were_not_run_stay_with_their_machine(benchmark, tmp_path, monkeypatch):
    main, case = benchmark("__main__"), benchmark("case")
    names = {"model": ["a step"], "vae": ["decode", "encode"]}
    for group in names:
        monkeypatch.setitem(
            main.GROUPS,
            group,
            lambda _quick, _device, group=group: (
                toy_case(case, group, name, (case.Goal("ours", "peer", 2.0, 0.1),))
                for name in names[group]
            ),
        )
    monkeypatch.setattr(main, "machine", lambda _: {"processor": "an old one"})
    main.main(["--groups", "model", "vae", "--out", str(tmp_path)])
    first = json.loads((tmp_path / "results.json").read_text())["groups"]

    names["vae"] = ["decode"]
    monkeypatch.setattr(main, "machine", lambda _: {"processor": "a new one"})
    main.main(["--groups", "vae", "--out", str(tmp_path)])
    second = json.loads((tmp_path / "results.json").read_text())["groups"]

    assert second["model"] == first["model"]
    assert [each["name"] for each in second["vae"]["cases"]] == ["decode"]
    assert [second[group]["machine"]["processor"] for group in names] == ["an old one", "a new one"]
    of_model, of_vae = (tmp_path / "report.md").read_text().split("## ")[1:]
    assert "an old one" in of_model
    assert "a step" in of_model
    assert "a new one" in of_vae
    assert "| encode" not in of_vae


def test_unknown_results_are_refused_before_anything_runs(benchmark, tmp_path, monkeypatch, capsys):
    main = benchmark("__main__")
    monkeypatch.setattr(main, "run", pytest.fail)
    for text in ('{"machine": {}, "cases": []}', "{", "[]", '{"groups": {"vae": {}}}'):
        (tmp_path / "results.json").write_text(text)
        with pytest.raises(SystemExit):
            main.main(["--out", str(tmp_path)])
        error = capsys.readouterr().err
        assert "results.json is not what these benchmarks write" in error
        assert (tmp_path / "results.json").read_text() == text


def test_each_device_has_a_report_and_trials_have_none(benchmark):
    folder = benchmark("__main__").default_folder
    cpu, cuda = torch.device("cpu"), torch.device("cuda")
    assert folder(cpu, partial=False) == Path("docs/benchmarks")
    assert folder(cuda, partial=False) == Path("docs/benchmarks/cuda")
    assert folder(cpu, partial=True) == Path("artifacts/benchmarks")
    assert folder(cuda, partial=True) == Path("artifacts/benchmarks/cuda")


def test_the_shipped_results_are_what_the_shipped_report_shows(benchmark):
    folder = ROOT / "docs" / "benchmarks"
    sections = benchmark("records").read(folder)
    assert set(sections) == {"attention", "model", "vae", "family"}
    report = (folder / "report.md").read_text(encoding="utf-8")
    assert benchmark("report").as_markdown(sections) == report


def test_report_judges_speed_and_memory(benchmark):
    reading, case = benchmark("measure").Reading, benchmark("case")
    readings = {"peer": reading(1.0, 1.0, 1.0, 3, 100), "ours": reading(0.4, 0.4, 0.4, 3, 70)}
    goals = (
        case.Goal("ours", "peer", 3.0, 2.0),
        case.Goal("ours", "peer", 5.0, 4.0),
        case.Goal("ours", "peer", 0.75, 0.8, memory=True),
    )
    result = case.Result("decode", readings, goals)
    assert [result.ratio(goal) for goal in goals] == pytest.approx([2.5, 2.5, 0.7])
    section = benchmark("records").Section({"threads": 2}, "2026-01-02", (result,))
    text = benchmark("report").as_markdown({"vae": section})
    assert "Measured on 2026-01-02: threads 2." in text
    judged = [line for line in text.splitlines() if "ours against peer" in line]
    assert [line.split("|")[-2].strip() for line in judged] == ["reached", "**missed**", "goal met"]
