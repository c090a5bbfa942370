"""Plans of tiles, blending, and what happens when memory runs out."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

from kandinsky_core.family.config import ImageVAEConfig, VideoVAEConfig
from kandinsky_core.family.variants import VAES
from kandinsky_core.models import ImageVAE, Tiles, VideoVAE, fit_tiles
from kandinsky_core.models.vae import causal
from kandinsky_core.models.vae import memory as vae_memory
from kandinsky_core.models.vae.memory import tensor_bytes, tile_bytes
from kandinsky_core.models.vae.tiled_run import run_tiles
from kandinsky_core.models.vae.tiling import Span

MIB = 2**20
TINY = VideoVAEConfig((8, 8, 16, 16), layers_per_block=1, latent_channels=4, norm_num_groups=4)
FACTOR = (4, 2, 3)


def upscale(grid: torch.Tensor, factor=FACTOR):
    """Return a decoder without a receptive field: every cell becomes a block of its own value."""
    time, height, width = factor
    cells = grid.repeat_interleave(height, 3).repeat_interleave(width, 4)
    return torch.cat([cells[:, :, :1], cells[:, :, 1:].repeat_interleave(time, 2)], dim=2)


def run_upscale(grid: torch.Tensor):
    return lambda tile: upscale(
        grid[:, :, tile.time.slice, tile.height.slice, tile.width.slice].clone()
    )


axes = st.tuples(st.integers(1, 14), st.integers(1, 12), st.integers(0, 11)).map(
    lambda axis: (axis[0], axis[1] + min(axis[1], axis[2]), axis[1])
)


@given(axes, axes, axes)
@settings(max_examples=60, deadline=None)
def test_blending_restores_what_needs_no_context(time, height, width):
    sizes, tiles, strides = zip(time, height, width, strict=True)
    tiling = Tiles.strided(sizes, (tiles[0] + 1, *tiles[1:]), strides)
    grid = torch.rand(1, 2, *sizes)
    chunks = list(run_tiles(run_upscale(grid), tiling, FACTOR))
    assert len(chunks) == len(tiling.time)
    torch.testing.assert_close(torch.cat(chunks, dim=2), upscale(grid))


@given(st.integers(1, 61), st.integers(1, 130), st.integers(1, 130), st.floats(0.02, 1.0))
@settings(max_examples=40, deadline=None)
def test_plans_cover_the_grid_and_keep_the_budget(time, height, width, share):
    config, grid = VAES["hunyuan"], (time, height, width)
    whole = tile_bytes(config, grid, 1, torch.bfloat16, "decode")
    smallest = tile_bytes(
        config,
        [min(*pair) for pair in zip(grid, (5, 16, 16), strict=True)],
        1,
        torch.bfloat16,
        "decode",
    )
    budget = max(int(whole * share), 4 * smallest + 500 * height * width * 64)
    tiling = fit_tiles(config, (1, 16, *grid), budget, torch.bfloat16)
    for spans, size in zip((tiling.time, tiling.height, tiling.width), grid, strict=True):
        covered = {cell for span in spans for cell in range(span.start, span.stop)}
        assert covered == set(range(size))
    assert tile_bytes(config, tiling.largest_thw, 1, torch.bfloat16, "decode") <= budget


def test_more_memory_means_fewer_tiles():
    shape = (1, 16, 31, 64, 96)
    counts = [
        fit_tiles(VAES["hunyuan"], shape, budget * 2**30, torch.bfloat16).num_tiles
        for budget in (2, 4, 8, 16, 32, 256)
    ]
    assert counts == sorted(counts, reverse=True)
    assert counts[0] > counts[-2] > counts[-1] == 1


def test_nano_clips_and_flux_images_fit_whole_by_default():
    budget = 8 * 2**30
    for name, shape in (("nano", (1, 16, 7, 32, 32)), ("flux", (1, 16, 1, 128, 128))):
        assert fit_tiles(VAES[name], shape, budget, torch.float32).num_tiles == 1


def test_too_small_a_budget_says_what_is_needed():
    shape = (1, 16, 31, 64, 96)
    with pytest.raises(ValueError, match=r"memory_budget 10 MiB .* need (\d+) MiB") as caught:
        fit_tiles(VAES["hunyuan"], shape, 10 * MIB, torch.bfloat16)
    needed = int(str(caught.value).split("need ")[1].split(" MiB")[0])
    assert fit_tiles(VAES["hunyuan"], shape, needed * MIB, torch.bfloat16).num_tiles > 1


def test_where_nothing_must_fit_the_smallest_tiles_are_tried():
    shape = (1, 16, 31, 64, 96)
    tiling = fit_tiles(VAES["hunyuan"], shape, 10 * MIB, torch.bfloat16, must_fit=False)
    assert tiling == Tiles.smallest(shape[2:])
    assert tiling.largest_thw == (5, 16, 16)
    assert tiling.shrink(0) is None
    roomy = fit_tiles(VAES["hunyuan"], shape, 2**38, torch.bfloat16, must_fit=False)
    assert roomy.num_tiles == 1


@pytest.mark.parametrize(
    "spans",
    [((0, 4), (5, 8)), ((1, 8),), ((0, 8), (2, 8), (4, 8)), ((0, 8), (4, 6))],
)
def test_plans_that_make_no_sense(spans):
    axis = tuple(Span(*span) for span in spans)
    with pytest.raises(ValueError, match="height spans"):
        Tiles((Span(0, 1),), axis, (Span(0, 4),))


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"),
        RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory"),
        RuntimeError("MPS backend out of memory"),
        MemoryError(),
    ],
    ids=["cuda", "cpu", "mps", "python"],
)
def test_running_out_of_memory_goes_on_with_smaller_tiles(error, caplog):
    grid = torch.rand(1, 2, 12, 40, 33)
    run, seen, progress = run_upscale(grid), [], []

    def limited(tile):
        cells = tile.time.length * tile.height.length * tile.width.length
        seen.append(cells)
        # memory gets scarcer after the first span of time
        if cells > (3000 if len(seen) < 9 else 5 * 16 * 16):
            raise error
        return run(tile)

    tiling = Tiles.whole(grid.shape[2:])
    chunks = run_tiles(limited, tiling, FACTOR, lambda *args: progress.append(args))
    torch.testing.assert_close(torch.cat(list(chunks), dim=2), upscale(grid))
    assert min(seen) < 3000 < max(seen)
    assert "at tiles of 12 x 40 x 33 latent cells" in caplog.messages[0]
    assert progress[-1][0] == progress[-1][1]


class Starved(TorchDispatchMode):
    """Memory runs out where an operation makes more than `limit` numbers, `times` times."""

    def __init__(self, operation: str, limit: int, times: int) -> None:
        super().__init__()
        self.operation, self.limit, self.left = operation, limit, times

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        hit = func._opname == self.operation and result.numel() > self.limit
        if hit and self.left:
            self.left -= 1
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")
        return result


@pytest.mark.parametrize(
    ("operation", "limit", "times"),
    [("new_zeros", 100_000, 99), ("clone", 10_000, 1), ("lerp", 10_000, 1)],
    ids=["frames of a span", "end of a span", "seam"],
)
def test_frames_that_do_not_fit_are_made_fewer_at_a_time(operation, limit, times, caplog):
    """The network is not what fails: tiles stay as wide and cover less time."""
    grid, tiles = torch.rand(1, 2, 12, 20, 20), []
    upscaled = run_upscale(grid)

    def run(tile):
        tiles.append((tile.time.length, tile.height.length, tile.width.length))
        return upscaled(tile)

    tiling = Tiles.strided((12, 20, 20), (7, 16, 16), (5, 8, 8))
    with Starved(operation, limit, times):
        chunks = list(run_tiles(run, tiling, FACTOR))
    torch.testing.assert_close(torch.cat(chunks, dim=2), upscale(grid))
    assert tiles[0] == (7, 16, 16)
    assert {tile[1:] for tile in tiles} == {(16, 16), (16, 12), (12, 16), (12, 12)}
    assert sorted({tile[0] for tile in tiles})[-2:] == [5, 7]
    assert "at tiles of 7 x 16 x 16" in caplog.messages[0]
    assert caplog.messages[0].endswith("with tiles of 5 x 16 x 16")


def test_frames_that_fit_at_no_length_are_reported():
    with Starved("new_zeros", 0, 99), pytest.raises(torch.OutOfMemoryError):
        list(
            run_tiles(
                run_upscale(torch.rand(1, 2, 9, 40, 40)),
                Tiles.strided((9, 40, 40), (5, 24, 24), (4, 16, 16)),
                FACTOR,
            )
        )


def test_running_out_of_memory_at_the_smallest_tile_is_reported():
    def fail(_tile):
        raise torch.OutOfMemoryError("CUDA out of memory")

    with pytest.raises(torch.OutOfMemoryError):
        list(run_tiles(fail, Tiles.whole((9, 40, 40)), FACTOR))


def test_other_errors_pass_through():
    calls = []

    def fail(tile):
        calls.append(tile)
        raise RuntimeError("shapes do not match")

    with pytest.raises(RuntimeError, match="shapes do not match"):
        list(run_tiles(fail, Tiles.whole((9, 40, 40)), FACTOR))
    assert len(calls) == 1


@pytest.mark.parametrize("direction", ["encode", "decode"])
@pytest.mark.parametrize(
    ("config", "grid", "piece"),
    [
        (VideoVAEConfig((16, 32, 32, 32), 1, 8, 8), (5, 4, 4), None),
        (VideoVAEConfig((16, 32, 32, 32), 1, 8, 8), (9, 4, 4), 2**16),
        (VAES["nano"], (3, 8, 8), None),
        (ImageVAEConfig((16, 32, 32, 32), 1, 8, 8), (1, 32, 32), None),
    ],
    ids=["whole", "pieces", "nano", "image"],
)
def test_count_of_tensors_is_right_and_the_allowance_within_a_factor_of_two(
    config, grid, piece, direction, monkeypatch, peak_memory
):
    """Tensors alive at the peak; the convolution library's own scratch space is on top."""
    if piece:
        monkeypatch.setattr(causal, "PIECE_ELEMENTS", piece)
        monkeypatch.setattr(vae_memory, "PIECE_ELEMENTS", piece)
    image = isinstance(config, ImageVAEConfig)
    vae = (ImageVAE if image else VideoVAE)(config).requires_grad_(False)
    time, height, width = grid
    if direction == "decode":
        run, x = vae.decode_tile, torch.randn(1, config.latent_channels, *grid)
    else:
        frames = time if image else 4 * (time - 1) + 1
        run, x = vae.encode_tile, torch.rand(1, 3, frames, 8 * height, 8 * width)
    with torch.no_grad(), peak_memory(x) as memory:
        run(x)
    counted = tensor_bytes(config, grid, 1, torch.float32, direction)
    assert counted == pytest.approx(memory.peak, rel=0.05)
    allowed = tile_bytes(config, grid, 1, torch.float32, direction)
    assert memory.peak <= allowed <= 2 * memory.peak


def test_pieces_take_less_memory_than_the_whole(monkeypatch, peak_memory):
    vae = VideoVAE(VideoVAEConfig((16, 32, 32, 32), 1, 8, 8)).requires_grad_(False)
    latents, peaks = torch.randn(1, 8, 5, 4, 4), []
    for piece in (2**30, 2**14):
        monkeypatch.setattr(causal, "PIECE_ELEMENTS", piece)
        with torch.no_grad(), peak_memory() as memory:
            vae.decode_tile(latents)
        peaks.append(memory.peak)
    assert peaks[1] < 0.7 * peaks[0]


def test_decoding_to_one_tensor_holds_the_clip_once(peak_memory):
    vae = VideoVAE(TINY).requires_grad_(False)
    latents = torch.randn(1, 4, 41, 2, 2)
    tiling = Tiles.strided((41, 2, 2), (5, 2, 2), (3, 2, 2))
    with torch.no_grad(), peak_memory() as stream:
        for _chunk in vae.decode_frames(latents, tiling=tiling):
            pass
    with torch.no_grad(), peak_memory() as memory:
        pixels = vae.decode(latents, tiling=tiling)
    assert memory.peak <= 1.05 * (stream.peak + pixels.nbytes)


def test_streaming_takes_no_more_memory_for_a_longer_clip(peak_memory):
    vae = VideoVAE(TINY).requires_grad_(False)
    peaks = []
    for time in (9, 18):
        latents = torch.randn(1, 4, time, 2, 2)
        tiling = Tiles.strided((time, 2, 2), (5, 2, 2), (3, 2, 2))
        with torch.no_grad(), peak_memory() as memory:
            for _chunk in vae.decode_frames(latents, tiling=tiling):
                pass
        peaks.append(memory.peak)
    assert peaks[1] <= 1.05 * peaks[0]


@pytest.mark.parametrize("gib", [0.7, 1, 2, 4, 8])
def test_tiles_are_no_larger_than_their_number_asks(gib):
    grid = (31, 64, 96)
    tiling = fit_tiles(VAES["hunyuan"], (1, 16, *grid), int(gib * 2**30), torch.bfloat16)
    # k spans of `overlap + stride` cells cover overlap + k stride; past the first frame in time
    axes = ((30, 1, 3, tiling.time), (64, 8, 8, tiling.height), (96, 8, 8, tiling.width))
    for (size, overlap, least, spans), largest in zip(axes, tiling.largest_thw, strict=True):
        stride = max(least, -(-(size - overlap) // len(spans)))
        assert largest <= overlap + stride + (spans is tiling.time)
