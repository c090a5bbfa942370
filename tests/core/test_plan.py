"""Predicted memory against the peaks of real runs, and what a plan says."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest
import torch

from kandinsky_core.__main__ import main
from kandinsky_core.attention import Nabla, attend_dense, attend_gathered
from kandinsky_core.attention.backends import gathered
from kandinsky_core.caching import MagCache, MagRatios
from kandinsky_core.checkpoint import load_transformer
from kandinsky_core.family.config import DiTConfig, VideoVAEConfig
from kandinsky_core.family.variants import VAES, VARIANTS
from kandinsky_core.flow import make_noise, sample, timesteps
from kandinsky_core.guided_model import GuidedModel
from kandinsky_core.models import (
    CrossDiT,
    ImageVAE,
    Tiles,
    VideoVAE,
    call_bytes,
    tiled_bytes,
)
from kandinsky_core.planning.costs import count_parameters, step_cost
from kandinsky_core.planning.jobs import Request, make_job
from kandinsky_core.planning.plan import (
    GIB,
    OFFLOADS,
    best_plan,
    plan_job,
    sampling_bytes,
    shorter_that_fits,
)
from kandinsky_core.planning.report import fits, verdict
from kandinsky_core.text import TextConditioning

SQUARE = DiTConfig(64, 256, 32, 1, 2, (8, 12, 12), latent_channels=4, text_dim=24, pooled_dim=12)
NARROW = replace(SQUARE, ff_dim=128)
WIDE = DiTConfig(128, 512, 64, 1, 2, (16, 24, 24), latent_channels=4, text_dim=24, pooled_dim=12)
SPARSE = Nabla(0.5, (1, 4, 4), (1, 1, 1))
SMALL_VAE = VideoVAEConfig((16, 32, 32, 32), 1, 4, 8)
WITHIN = 0.15
"""Relative error that a prediction may have."""


def run_network(config, thw, dtype, nabla, batch, peak_memory):
    network = CrossDiT(config, dtype=torch.float32).requires_grad_(False).to(dtype)
    compute = torch.bfloat16 if dtype.itemsize == 1 else dtype
    x = torch.randn(batch, config.input_channels, *thw).to(compute)
    t = torch.full((batch,), 0.5)
    tokens, pooled = torch.randn(batch, 7, 24), torch.randn(batch, 12)
    attend = attend_dense if nabla is None else attend_gathered
    with (
        torch.no_grad(),
        peak_memory(x, t, tokens, pooled, *network.parameters()) as memory,
    ):
        network(x, t, tokens, pooled, nabla=nabla, attend=attend)
    return memory.peak, compute


@pytest.mark.parametrize("thw", [(1, 16, 32), (3, 32, 32)], ids=["128 tokens", "768 tokens"])
@pytest.mark.parametrize("config", [SQUARE, NARROW, WIDE], ids=["square", "narrow", "wide"])
@pytest.mark.parametrize("nabla", [None, SPARSE], ids=["dense", "nabla"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
def test_a_call_takes_what_was_counted(dtype, nabla, config, thw, peak_memory, monkeypatch):
    # gathered pieces are far smaller than the stream at real sizes; here too
    monkeypatch.setitem(gathered.PIECE_BYTES, "cpu", 1 << 13)
    peak, _ = run_network(config, thw, dtype, nabla, 1, peak_memory)
    tokens = thw[0] * thw[1] * thw[2] // 4
    counted = call_bytes(
        config,
        tokens,
        text_tokens=7,
        dtype=dtype,
        nabla=nabla,
        density=0.5,
        device_type="cpu",
    )
    assert counted == pytest.approx(peak, rel=WITHIN)


@pytest.mark.parametrize("stored", [None, torch.float8_e4m3fn], ids=["bf16", "fp8"])
def test_a_wide_feed_forward_layer_is_the_peak(stored, peak_memory, monkeypatch):
    """At the widths of the family other moments take as much; here they are small beside it."""
    monkeypatch.setitem(gathered.PIECE_BYTES, "cpu", 1 << 13)
    config = replace(WIDE, ff_dim=16 * WIDE.model_dim)
    thw, tokens = (3, 16, 16), 192
    peak, _ = run_network(config, thw, stored or torch.bfloat16, None, 1, peak_memory)
    counted = call_bytes(config, tokens, text_tokens=7, stored=stored)
    narrow = tokens * 128 * 2
    hidden, weight = 16 * narrow, 16 * 128 * 128 * 2
    beside = tokens * 32 * 8 + 7 * 128 * 2 + 9 * 128 * 4  # rotations, text, modulation
    assert counted == 4 * narrow + hidden + weight * bool(stored) + beside
    assert counted == pytest.approx(peak, rel=0.03)


def test_modulation_in_fp32_is_the_peak_of_few_tokens():
    """Nine vectors a block, each a matrix (width, time) that is cast while it is used."""
    config = replace(WIDE, time_dim=2048)
    tokens, narrow = 16, 16 * 128 * 2
    beside = tokens * 32 * 8 + 7 * 128 * 2 + 9 * 128 * 4  # rotations, text, modulation
    counted = call_bytes(config, tokens, text_tokens=7)
    assert counted == narrow + 9 * 128 * 2048 * 4 + beside
    in_fp32 = call_bytes(config, tokens, text_tokens=7, dtype=torch.float32)
    assert in_fp32 < counted / 10  # nothing is cast


def test_two_prompts_at_once_take_twice_as_much(peak_memory):
    thw, tokens = (3, 16, 32), 384
    peak, _ = run_network(SQUARE, thw, torch.bfloat16, None, 2, peak_memory)
    one, two = (call_bytes(SQUARE, tokens, batch=batch, text_tokens=7) for batch in (1, 2))
    assert two == pytest.approx(peak, rel=WITHIN)
    assert two == pytest.approx(2 * one, rel=0.1)


def test_weights_of_8_bits_are_cast_one_at_a_time(peak_memory):
    config, dtype = replace(WIDE, ff_dim=1024, time_dim=16), torch.float8_e4m3fn
    peak, compute = run_network(config, (1, 16, 16), dtype, None, 1, peak_memory)
    counted = call_bytes(config, 64, text_tokens=7, dtype=compute, stored=dtype)
    assert counted == pytest.approx(peak, rel=WITHIN)
    assert counted > 1.3 * call_bytes(config, 64, text_tokens=7, dtype=compute)


@pytest.mark.parametrize("cached", [False, True], ids=["plain", "magcache"])
@pytest.mark.parametrize("guided", [False, True], ids=["one prompt", "guided"])
def test_sampling_takes_what_was_counted(guided, cached, peak_memory):
    request = Request("nano", height=128, width=128, num_frames=5, guidance=guided, cached=cached)
    job, _ = make_job(request)
    job = replace(job, dtype=torch.float32, device_type="cpu")
    network = CrossDiT(job.config).requires_grad_(False)
    prompts = [
        TextConditioning(
            torch.randn(1, 64, job.config.text_dim),
            torch.ones(1, 64, dtype=torch.bool),
            torch.randn(1, job.config.pooled_dim),
        )
        for _ in range(2)
    ]
    cache = MagCache(MagRatios((1.0,), (1.0,), "a test"), threshold=0.0)
    cache.begin(2)
    model = GuidedModel(
        network,
        *prompts,
        scale=3.0 if guided else 1.0,
        attend=attend_dense,
        cache=cache if cached else None,
    )
    noise = make_noise((1, 16, *job.latent_thw), seed=0)
    given = [each for prompt in prompts for each in (prompt.tokens, prompt.mask, prompt.pooled)]
    with torch.no_grad(), peak_memory(*given, *network.parameters()) as memory:
        for _step in sample(model, noise, timesteps(2, 3.0)):
            pass
    assert sampling_bytes(job, 1) == pytest.approx(memory.peak, rel=WITHIN)
    if cached:
        stream = job.tokens * job.config.model_dim * 4
        plain = sampling_bytes(replace(job, cached=False), 1)
        assert sampling_bytes(job, 1) - plain == (3 if guided else 2) * stream


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize(
    ("grid", "tile", "stride"),
    [
        ((5, 8, 6), (5, 8, 6), (5, 8, 6)),
        ((9, 8, 8), (5, 8, 8), (3, 8, 8)),
        ((4, 12, 12), (4, 8, 12), (3, 4, 12)),
    ],
    ids=["whole", "tiles in time", "tiles in space"],
)
def test_decoding_takes_what_was_counted(grid, tile, stride, dtype, peak_memory):
    vae = VideoVAE(SMALL_VAE).requires_grad_(False).to(dtype)
    latents, tiling = torch.randn(1, 4, *grid), Tiles.strided(grid, tile, stride)
    with torch.no_grad(), peak_memory(latents, *vae.parameters()) as memory:
        for _chunk in vae.decode_frames(latents, tiling=tiling):
            pass
    counted = tiled_bytes(SMALL_VAE, tiling, 1, dtype, with_library=False)
    assert counted == pytest.approx(memory.peak, rel=WITHIN)
    assert counted <= tiled_bytes(SMALL_VAE, tiling, 1, dtype)


@pytest.mark.parametrize("variant", ["video_lite", "video_pro", "image_lite", "image_edit"])
def test_weights_are_those_of_the_networks(variant):
    job, _ = make_job(Request(variant))
    plan = plan_job(job, "streamed")
    sampling = next(stage for stage in plan.stages if stage.name == "sampling")
    decode = plan.stages[-1]
    sizes = {n: p.numel() for n, p in CrossDiT(VARIANTS[variant], device="meta").named_parameters()}
    assert sampling.weights == 2 * sum(sizes.values())
    later = ("visual_transformer_blocks.0.", "text_", "time_", "pooled_", "visual_emb", "out_layer")
    kept = sum(size for name, size in sizes.items() if name.startswith(later))
    assert sampling.least_weights == 2 * kept
    image = variant.startswith("image")
    vae = (
        ImageVAE(VAES["flux"], device="meta")
        if image
        else VideoVAE(VideoVAEConfig(), device="meta")
    )
    assert decode.weights == 2 * sum(p.numel() for p in vae.parameters())
    assert plan.all_weights == plan.stages[0].weights + sampling.weights + decode.weights


def test_offloading_more_needs_less():
    job, _ = make_job(Request("video_pro", task="i2v", height=768, width=1280, num_frames=121))
    needs = [plan_job(job, offload).needed for offload in OFFLOADS]
    assert needs == sorted(needs, reverse=True)
    assert needs[-1] < needs[0] / 3
    names = [stage.name for stage in plan_job(job).stages]
    assert names == [
        "text encoding",
        "VAE encode",
        "sampling",
        "sampling, both prompts at once",
        "VAE decode",
    ]


def test_the_plan_fits_and_the_next_better_does_not():
    job, _ = make_job(Request("video_lite"))
    for memory in (4 * GIB, 16 * GIB, 22 * GIB):
        plan = best_plan(job, memory)
        assert plan is not None
        assert plan.needed <= memory
        better = OFFLOADS[: OFFLOADS.index(plan.offload)]
        assert all(plan_job(job, offload).needed > memory for offload in better)
        tiled = plan.with_tiles(memory)
        assert plan.needed <= tiled.needed <= memory


def test_main_memory_holds_what_is_not_on_the_device():
    job, _ = make_job(Request("video_pro", task="t2v", height=512, width=768, num_frames=121))
    frames = 121 * 512 * 768 * 3 * 4
    transformer = 2 * count_parameters(job.config)
    # while the autoencoder works, the largest models wait, and the frames come beside them
    waiting = job.text.weights + transformer + frames
    assert [plan_job(job, offload).main_memory for offload in OFFLOADS] == [
        frames,
        waiting,
        waiting,
    ]
    on_cpu = replace(job, device_type="cpu")
    assert plan_job(on_cpu, "streamed").main_memory == 0


def test_too_little_main_memory_is_said():
    """The crash that users report: 16 GB on the card, 32 GB beside it."""
    pro = Request("video_pro", task="t2v", height=512, width=768, num_frames=121)
    job, _ = make_job(pro)
    card, main = 15 * GIB, 30 * GIB
    text = verdict(job, card, main=main)
    assert text.startswith("does not fit main memory: 51.")
    assert "30.0 GiB are free; the device fits 15.0 GiB with blocks streamed" in text
    assert not fits(job, card, main)
    assert fits(job, card)
    eight = torch.float8_e4m3fn
    job, _ = make_job(replace(pro, dtype=eight, text_dtype=eight))
    assert fits(job, card, main)
    assert "wait in main memory." in verdict(job, card, main=main)
    assert not fits(job, GIB, 100 * GIB)


def test_more_memory_means_fewer_tiles():
    job, _ = make_job(Request("video_lite"))
    counts = [
        plan_job(job).with_tiles(gib * GIB).stages[-1].tiling.num_tiles for gib in (4, 8, 16, 80)
    ]
    assert counts == sorted(counts, reverse=True)
    assert counts[0] > counts[-1] == 1


def test_density_and_steps_cost_time_and_hardly_memory():
    sparse = Request("video_lite", num_frames=241, density=0.2, num_steps=10)
    dense = replace(sparse, density=0.8, num_steps=50)
    (one, _), (other, _) = make_job(sparse), make_job(dense)
    assert one.nabla is not None
    assert sampling_bytes(one, 1) == pytest.approx(sampling_bytes(other, 1), rel=0.01)
    assert other.operations > 10 * one.operations


def test_guidance_doubles_the_operations():
    job, _ = make_job(Request("video_lite", num_steps=10))
    cost = step_cost(job.config, job.tokens, text_tokens=job.text.tokens).operations
    assert replace(job, guided=False).operations == pytest.approx(10 * cost)
    assert replace(job, guided=True).operations == pytest.approx(2 * 10 * cost)
    assert replace(job, guided=True, batch=3).operations == pytest.approx(3 * 2 * 10 * cost)


def test_what_does_not_fit_says_which_stage_and_what_would():
    job, _ = make_job(Request("video_pro", height=768, width=1280, num_frames=241))
    text = verdict(job, 12 * GIB, [(64, 96)])
    assert "sampling needs 2" in text
    smaller = shorter_that_fits(job, 12 * GIB).job
    assert smaller.latent_thw[1:] == job.latent_thw[1:]
    frames = 4 * (smaller.latent_thw[0] - 1) + 1
    assert f"what fits: {frames} frames of 768x1280 or 241 frames of 512x768" in text
    longer = (smaller.latent_thw[0] + 1, *job.latent_thw[1:])
    assert best_plan(replace(job, latent_thw=longer), 12 * GIB) is None
    assert "nothing smaller fits" in verdict(job, GIB // 2)


def test_the_command_prints_a_table_and_a_verdict(capsys):
    options = ["--model", "video_lite", "--task", "t2v", "--size", "512x768", "--frames", "121"]
    assert main(["plan", *options, "--dtype", "bf16", "--memory", "24"]) == 0
    out = capsys.readouterr().out
    assert "47,616 tokens, dense attention" in out
    row = next(line for line in out.splitlines() if line.startswith("sampling "))
    assert row.split()[1] == "3.74"  # 2.01 billion parameters of 2 bytes in GiB
    assert out.splitlines()[-1].startswith("fits 24.0 GiB")


def test_the_command_suggests_sizes_of_every_class(capsys):
    options = ["--model", "video_pro", "--size", "768x1280", "--frames", "241", "--memory", "12"]
    assert main(["plan", *options]) == 0
    last = capsys.readouterr().out.splitlines()[-1]
    assert re.search(r"what fits: \d+ frames of 768x1280 or 241 frames of 512x768\.$", last)
    assert main(["plan", "--model", "video_pro", "--size", "512x768", "--frames", "241",
                 "--memory", "12"]) == 0  # fmt: skip
    assert "fits 12.0 GiB" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (
            ["--model", "video_pro", "--size-class", "large"],
            "768x1280, 121 frames: .* NABLA at 40%",
        ),
        (
            ["--model", "video_pro", "--size-class", "small", "--size", "768x1280"],
            "dense attention",
        ),
        (["--model", "nano", "--task", "t2i", "--frames", "17"], "t2i: 128x128: 64 tokens"),
        (["--model", "nano-edit"], "i2i: 128x128: 64 tokens"),
        (["--cfg", "1"], "; 50 steps: "),
        (["--cfg", "1", "--guidance"], "; 50 steps with guidance: "),
    ],
)
def test_the_command_settles_as_generate_does(options, words, capsys):
    assert main(["plan", *options]) == 0
    assert re.search(words, capsys.readouterr().out.splitlines()[0])


def test_the_command_counts_main_memory_and_magcache(capsys):
    options = ["--model", "video_pro", "--memory", "15", "--main-memory", "30"]

    def sampling_tensors(*more):
        assert main(["plan", *options, *more]) == 0
        lines = capsys.readouterr().out.splitlines()
        row = next(line for line in lines if line.startswith("main memory"))
        assert [float(cell) for cell in row.split()[2:]] == pytest.approx([0.53, 51.2, 51.2], 0.01)
        assert lines[-1].startswith("does not fit main memory: 51.")
        return float(next(line for line in lines if line.startswith("sampling ")).split()[2])

    # input of the blocks and residuals of both prompts, 47,616 tokens of 4096 numbers in bf16
    grown = sampling_tensors("--magcache") - sampling_tensors()
    assert grown == pytest.approx(3 * 47_616 * 4096 * 2 / GIB, abs=0.011)


def test_a_file_is_planned_by_what_it_is(capsys):
    from kandinsky_core.nano import nano_path

    assert main(["plan", "--model", str(nano_path("transformer"))]) == 0
    assert "128x128, 17 frames: 320 tokens" in capsys.readouterr().out


def test_packed_weights_are_planned_by_their_bits(tmp_path, write_gguf, capsys):
    config = VARIANTS["debug"]
    state = {name: torch.zeros_like(w) for name, w in CrossDiT(config).state_dict().items()}
    path = write_gguf(tmp_path / "kandinsky5lite_t2v_sft_5s.gguf", state, "Q8_0")
    job, _ = make_job(Request(path))
    stored = sum(w.nbytes for w in load_transformer(path)[0].state_dict().values())
    assert job.weight_bytes(count_parameters(config)) == pytest.approx(stored, rel=1e-3)
    assert job.compute_dtype == torch.bfloat16
    unpacked, _ = make_job(Request(path, dtype=torch.bfloat16))
    assert unpacked.weight_bytes(1000) == 2000
    assert main(["plan", "--bits", "4.5"]) == 0
    assert "weights packed in 4.5 bits" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--model", "video_max"], "neither a file nor one of video_lite"),
        (
            ["--model", "image_lite", "--task", "t2v"],
            "not what this model was trained for; choose t2i,",
        ),
        (["--size", "500x768"], "height 500 must be a multiple of 16"),
        (["--size", "528x784", "--attention", "nabla"], "multiple of 128"),
        (["--density", "1.5", "--attention", "nabla"], "at most 1"),
        (["--density", "0"], "density is 0.0: it must be above 0"),
        (["--frames", "0"], "a length of 0 frames does not fit"),
        (["--steps", "0"], "steps: expected at least 1, found 0"),
        (["--size-class", "large"], "made for one class of sizes"),
        (["--nabla-p", "0.5"], "attention is dense here"),
        (["--bits", "0"], "bits is 0.0: it must be above 0 and at most 32"),
        (["--memory", "0"], "more than 0"),
        (["--memory", "8", "--main-memory", "-1"], "--main-memory is -1.0: give GiB, more"),
        (["--main-memory", "8"], "give --memory with it"),
        (["--report", "x.md"], "give --all"),
    ],
)
def test_bad_requests_are_one_sentence(options, sentence, capsys):
    assert main(["plan", *options]) == 1
    assert sentence in capsys.readouterr().err


def test_the_page_about_the_family_is_up_to_date(tmp_path, capsys):
    from tooling.environment import ROOT

    assert main(["plan", "--all", "--report", str(tmp_path / "memory.md")]) == 0
    page = (tmp_path / "memory.md").read_text(encoding="utf-8")
    assert page == (ROOT / "docs" / "memory.md").read_text(encoding="utf-8")
    assert "prediction" in page
    capsys.readouterr()
