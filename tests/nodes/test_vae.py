"""VAE: native nodes and ours give the same; budgets, batches and pictures."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.nn.functional import avg_pool2d

from kandinsky_core.checkpoint import load_vae
from kandinsky_core.family.config import ImageVAEConfig
from kandinsky_core.training.world import render, sample_scene
from kandinsky_core.video import read_video

SMALL_IMAGE_VAE = ImageVAEConfig((8, 16, 16, 16), layers_per_block=1, norm_num_groups=4)


@pytest.fixture
def latents():
    """Latents of 9 frames of 64 x 64 pixels."""
    return {"samples": torch.randn(1, 16, 3, 8, 8, generator=torch.Generator().manual_seed(0))}


def decode(run, vae, latents, budget=0.0):
    return run("K5_Decode", vae=vae, latent=latents, memory_budget_gb=budget)[0]


def test_decode_equals_the_core_and_native_decode(host, run, vae, latents):
    image = decode(run, vae, latents)
    assert image.shape == (9, 64, 64, 3)
    assert image.dtype == torch.float32
    assert 0 <= image.min() < image.max() <= 1
    (native,) = host.native.VAEDecode().decode(vae, latents)
    assert (image - native).abs().max() < 1e-5
    path = host.part("kandinsky_core.nano").nano_path("vae")
    core = load_vae(path, dtype=torch.float32).decode(latents["samples"])
    expected = ((core[0].permute(1, 2, 3, 0) + 1) / 2).clamp(0, 1)
    assert (image - expected).abs().max() < 1e-5


@pytest.fixture(params=["image", "video"])
def native_vae(request, host):
    """Return the host's own VAE class, with small networks in place of those it detects."""
    sd = host.module("comfy.sd")
    vae = sd.VAE(sd={"pixel_space_vae": torch.tensor(1.0)})
    torch.manual_seed(0)
    if request.param == "image":
        config = host.part("kandinsky_core.family.config").ImageVAEConfig(
            SMALL_IMAGE_VAE.block_out_channels, layers_per_block=1, norm_num_groups=4
        )
        network = host.part("kandinsky_core.models").ImageVAE(config)
    else:
        path = host.part("kandinsky_core.nano").nano_path("vae")
        network = host.part("kandinsky_core.checkpoint").load_vae(path, dtype=torch.float32)
    vae.latent_channels, vae.latent_dim = 16, 3 if request.param == "video" else 2
    vae.first_stage_model = host.part("nodes.host.vae").Autoencoder(network).eval()
    vae.process_output = lambda pixels: ((pixels + 1) / 2).clamp(0, 1)
    vae.memory_used_decode, vae.vae_dtype = lambda *_: 1, torch.float32
    patcher = host.module("comfy.model_patcher").ModelPatcher
    vae.patcher = patcher(vae.first_stage_model, vae.device, vae.device)
    return vae


def test_a_vae_of_other_nodes_decodes_as_it_does_there(host, run, native_vae, caplog):
    generator = torch.Generator().manual_seed(0)
    frames = (3,) if native_vae.latent_dim == 3 else ()
    latents = {"samples": torch.randn(2, 16, *frames, 8, 8, generator=generator)}
    caplog.set_level("INFO")
    image = decode(run, native_vae, latents)
    (expected,) = host.native.VAEDecode().decode(native_vae, latents)
    assert image.shape == ((18, 64, 64, 3) if frames else (2, 64, 64, 3))
    assert (image - expected).abs().max() < 1e-6
    assert "memory_budget_gb" not in caplog.text
    assert torch.equal(decode(run, native_vae, latents, 4.0), image)
    assert "memory_budget_gb is for VAEs of Load VAE" in caplog.text
    if not frames:
        clip = {"samples": latents["samples"][:, :, None]}
        assert torch.equal(decode(run, native_vae, clip), image)


def test_a_vae_of_other_nodes_takes_tiles_of_its_own(host, run, native_vae, monkeypatch):
    management = host.module("comfy.model_management")
    shape = (1, 16, 3, 8, 8) if native_vae.latent_dim == 3 else (1, 16, 8, 8)
    whole = native_vae.first_stage_model.decode
    tiled = []

    def starved(latents, **options):
        if not tiled:
            raise management.OOM_EXCEPTION("Allocation on device")
        return whole(latents, **options)

    def tile(name):
        own = getattr(native_vae, name)
        monkeypatch.setattr(native_vae, name, lambda *a, **k: (tiled.append(name), own(*a, **k))[1])

    tile("decode_tiled_")
    tile("decode_tiled_3d")
    native_vae.upscale_ratio, native_vae.upscale_index_formula = 8, None
    if native_vae.latent_dim == 3:
        native_vae.upscale_ratio = (lambda t: 4 * t - 3, 8, 8)
        native_vae.upscale_index_formula = (4, 8, 8)
    monkeypatch.setattr(native_vae.first_stage_model, "decode", starved)
    image = decode(run, native_vae, {"samples": torch.zeros(shape)})
    assert tiled and image.shape[1:] == (64, 64, 3)


def test_a_latent_of_another_vae_is_refused(run, native_vae):
    shape = (1, 4, 3, 8, 8) if native_vae.latent_dim == 3 else (1, 4, 8, 8)
    with pytest.raises(ValueError, match=r"vae: it decodes 16 channels, found .*\(1, 4, .*load"):
        decode(run, native_vae, {"samples": torch.zeros(shape)})
    nano = {"samples": torch.zeros(1, 16, 3, 8, 8), "k5_space": "nano"}
    with pytest.raises(ValueError, match=r"of shape \(1, 16, 3, 8, 8\) for the nano VAE; load"):
        decode(run, native_vae, nano)


def test_native_encode_takes_any_clip(host, vae):
    encode = host.native.VAEEncode().encode
    assert encode(vae, torch.rand(9, 64, 64, 3))[0]["samples"].shape == (1, 16, 3, 8, 8)
    # sides and frames that do not fit are cut
    assert encode(vae, torch.rand(7, 70, 66, 3))[0]["samples"].shape == (1, 16, 2, 8, 8)


def test_native_tiled_nodes_run(host, vae, latents):
    (image,) = host.native.VAEDecodeTiled().decode(vae, latents, 64, 0, 64, 8)
    assert image.shape == (9, 64, 64, 3)
    (out,) = host.native.VAEEncodeTiled().encode(vae, torch.rand(9, 64, 64, 3), 64, 0, 64, 8)
    assert out["samples"].shape == (1, 16, 3, 8, 8)


def test_batch_decodes_clip_by_clip(run, vae, latents):
    two = {"samples": torch.cat([latents["samples"], -latents["samples"]])}
    image = decode(run, vae, two)
    assert image.shape == (18, 64, 64, 3)
    assert (image[:9] - decode(run, vae, latents)).abs().max() < 1e-5


def test_small_budget_decodes_in_tiles(host, run, vae):
    big = {"samples": torch.randn(1, 16, 3, 32, 32, generator=torch.Generator().manual_seed(1))}
    fit_tiles = host.part("kandinsky_core.models").fit_tiles
    whole = vae.memory_used_decode(big["samples"].shape, torch.float32)
    budget = whole * 0.6
    tiling = fit_tiles(vae.network.config, big["samples"].shape, int(budget), torch.float32)
    assert tiling.num_tiles > 1
    image = decode(run, vae, big, budget / 2**30)
    assert image.shape == (9, 256, 256, 3)


@pytest.fixture(params=["torch", "host"])
def out_of_memory(request, host):
    """Return what is raised where memory runs out: torch's exception, and the one the host
    knows."""
    if request.param == "torch":
        return torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")
    kind = host.module("comfy.model_management").OOM_EXCEPTION
    if kind is Exception:
        pytest.skip("this host takes any exception for it")
    return kind("Allocation on device")


@pytest.fixture
def starve(monkeypatch, vae, out_of_memory):
    """Make a direction of the VAE run out of memory on anything as large as the whole."""

    def patch(name, cells):
        run = getattr(vae.network, name)

        def limited(x):
            if x[0, 0].numel() >= cells:
                raise out_of_memory
            return run(x)

        monkeypatch.setattr(vae.network, name, limited)

    return patch


@pytest.mark.parametrize("native", [False, True], ids=["ours", "native"])
def test_decode_goes_on_with_smaller_tiles(host, run, vae, starve, native, caplog):
    big = {"samples": torch.randn(1, 16, 3, 24, 24, generator=torch.Generator().manual_seed(1))}
    halves = host.part("kandinsky_core.models").Tiles.whole((3, 24, 24)).shrink(0)
    assert halves.num_tiles == 2
    expected = vae.network.decode(big["samples"], tiling=halves)
    expected = ((expected[0].permute(1, 2, 3, 0) + 1) / 2).clamp(0, 1)
    starve("decode_tile", 3 * 24 * 24)
    if native:
        (image,) = host.native.VAEDecode().decode(vae, big)
    else:
        image = decode(run, vae, big)
    assert (image - expected).abs().max() < 1e-5
    lines = [line for line in caplog.messages if "memory ran out" in line]
    assert len(lines) == 1
    assert "3 x 24 x 24" in lines[0]
    assert "tiled VAE decoding" not in caplog.text  # the host's own fallback


def test_encode_goes_on_with_smaller_tiles(host, vae, starve, caplog):
    frames = torch.rand(9, 192, 192, 3, generator=torch.Generator().manual_seed(2))
    halves = host.part("kandinsky_core.models").Tiles.whole((3, 24, 24)).shrink(0)
    pixels = frames.permute(3, 0, 1, 2)[None] * 2 - 1
    expected = vae.network.encode(pixels, tiling=halves)
    starve("encode_tile", 9 * 192 * 192)
    (out,) = host.native.VAEEncode().encode(vae, frames)
    assert (out["samples"] - expected).abs().max() < 1e-4
    assert sum("memory ran out" in line for line in caplog.messages) == 1


def test_nothing_smaller_is_left(run, vae, starve, out_of_memory):
    starve("decode_tile", 0)
    big = {"samples": torch.zeros(1, 16, 3, 16, 16)}
    with pytest.raises(type(out_of_memory)):
        decode(run, vae, big)


def test_tiles_follow_what_is_free(host, run, vae, monkeypatch, caplog):
    """Even where nothing fits by the estimate, which is on the safe side."""
    caplog.set_level("INFO")
    management = host.module("comfy.model_management")
    big = {"samples": torch.randn(1, 16, 3, 24, 24, generator=torch.Generator().manual_seed(1))}
    whole = vae.network.config, (3, 24, 24), 1, torch.float32
    tile_bytes = host.part("kandinsky_core.models").tile_bytes
    for free, tiles in ((2 * tile_bytes(*whole, "decode"), 0), (1 << 20, 4)):
        caplog.clear()
        monkeypatch.setattr(management, "get_free_memory", lambda *_args, free=free: free)
        assert decode(run, vae, big).shape == (9, 192, 192, 3)
        lines = [line for line in caplog.messages if "the VAE decodes" in line]
        assert len(lines) == bool(tiles)
        assert not tiles or f"in {tiles} tiles of up to 3 x 16 x 16" in lines[0]
    caplog.clear()
    (out,) = host.native.VAEEncode().encode(vae, torch.rand(9, 192, 192, 3))
    assert out["samples"].shape == (1, 16, 3, 24, 24)
    assert sum("the VAE encodes" in line for line in caplog.messages) == 1


@pytest.fixture
def long_latents():
    """Latents of 401 frames of 16 x 16 pixels: all of them are larger than the work on a few."""
    generator = torch.Generator().manual_seed(3)
    return {"samples": torch.randn(1, 16, 101, 2, 2, generator=generator)}


@pytest.fixture
def budget(host, vae, long_latents):
    """GiB that decode `long_latents` in spans of time."""
    models = host.part("kandinsky_core.models")
    shape = long_latents["samples"].shape
    smallest = models.Tiles.smallest(shape[2:])
    assert len(smallest.time) == 33
    needed = models.tiled_bytes(vae.network.config, smallest, 1, torch.float32)
    return 1.01 * needed / 2**30


def test_decode_holds_the_frames_once(run, vae, long_latents, budget, peak_memory):
    with peak_memory(long_latents["samples"], *vae.network.parameters()) as memory:
        image = decode(run, vae, long_latents, budget)
    work = budget * 2**30
    assert image.shape == (401, 16, 16, 3)
    assert image.nbytes < memory.peak <= work + image.nbytes < 1.8 * image.nbytes


def decode_video(host, vae, latents, budget=0.0, fps=24.0):
    node = host.pack["K5_DecodeVideo"]
    return node.execute(vae=vae, latent=latents, fps=fps, memory_budget_gb=budget).result[0]


@pytest.fixture
def temporary(host, tmp_path, monkeypatch):
    """ComfyUI's folder of temporary files, which need not exist."""
    folder = tmp_path / "temp"
    monkeypatch.setattr(host.module("folder_paths"), "temp_directory", str(folder))
    return folder


def test_a_video_is_what_decode_and_create_video_make(host, run, vae, latents, temporary, tmp_path):
    expected = decode(run, vae, latents)
    video = decode_video(host, vae, latents, fps=12.0)
    parts = video.get_components()
    assert parts.images.shape == expected.shape
    assert parts.frame_rate == 12
    assert (parts.images - expected).abs().mean() < 0.05  # two steps of compression aside
    assert len(list(temporary.iterdir())) == 1
    saved = tmp_path / "saved.mp4"
    video.save_to(str(saved), metadata={"prompt": {"1": {}}})
    clip = read_video(saved)
    assert (clip.frames.shape, clip.fps) == ((9, 64, 64, 3), 12)
    assert clip.metadata["prompt"] == '{"1": {}}'


@pytest.mark.usefixtures("temporary")
def test_a_video_is_never_in_memory_as_a_whole(host, vae, long_latents, budget, peak_memory):
    with peak_memory(long_latents["samples"], *vae.network.parameters()) as memory:
        video = decode_video(host, vae, long_latents, budget)
    assert (video.get_dimensions(), video.get_frame_count()) == ((16, 16), 401)
    assert memory.peak <= budget * 2**30 < 401 * 16 * 16 * 3 * 4 / 2


@pytest.mark.parametrize("why", ["cancelled", "broken"])
def test_nothing_stays_of_a_video_that_was_not_finished(
    host, vae, long_latents, budget, temporary, monkeypatch, why
):
    management = host.module("comfy.model_management")
    decode_tile, tiles = vae.network.decode_tile, []

    def watched(x):
        tiles.append(x)
        if len(tiles) == 30:
            assert len(list(temporary.iterdir())) == 1, "frames are written as they come"
            if why == "broken":
                raise ValueError("broken")
            management.interrupt_current_processing(True)
        return decode_tile(x)

    monkeypatch.setattr(vae.network, "decode_tile", watched)
    kind = ValueError if why == "broken" else management.InterruptProcessingException
    with pytest.raises(kind):
        decode_video(host, vae, long_latents, budget)
    assert list(temporary.iterdir()) == []
    assert len(tiles) == 30


def test_cancel_while_decoding(host, run, vae, latents):
    management = host.module("comfy.model_management")
    management.interrupt_current_processing(True)
    with pytest.raises(management.InterruptProcessingException):
        decode(run, vae, latents)
    assert decode(run, vae, latents).shape == (9, 64, 64, 3)


def test_image_vae_takes_pictures_and_single_frames(host, run):
    module = host.part("nodes.host.vae")
    config = host.part("kandinsky_core.family.config").ImageVAEConfig(
        SMALL_IMAGE_VAE.block_out_channels, layers_per_block=1, norm_num_groups=4
    )
    torch.manual_seed(0)
    vae = module.VAE(host.part("kandinsky_core.models").ImageVAE(config))
    pictures = torch.rand(2, 64, 48, 3)
    (encoded,) = host.native.VAEEncode().encode(vae, pictures)
    assert encoded["samples"].shape == (2, 16, 8, 6)
    (native,) = host.native.VAEDecode().decode(vae, encoded)
    ours = decode(run, vae, encoded)
    frames = {"samples": encoded["samples"][:, :, None]}
    assert native.shape == (2, 64, 48, 3)
    assert (ours - native).abs().max() < 1e-5
    assert (decode(run, vae, frames) - native).abs().max() < 1e-5


def test_memory_estimate_of_a_released_clip_is_gigabytes(host):
    """5 s at 512 x 768: ComfyUI 0.3.75 asks for 136 GiB, which unloads everything for nothing."""
    vae = host.part("nodes.host.vae")
    config = host.part("kandinsky_core.family.config").VideoVAEConfig()
    with torch.device("meta"):
        network = host.part("kandinsky_core.models").VideoVAE(config)
    wrapped = object.__new__(vae.VAE)
    wrapped.first_stage_model = vae.Autoencoder(network)
    wrapped.latent_channels, wrapped.is_video = 16, True
    needed = wrapped._decode_bytes((1, 16, 31, 64, 96), torch.bfloat16)
    assert 2**30 < needed <= 8 * 2**30


def test_saved_vae_keeps_its_names(vae):
    with torch.device("meta"):
        network = type(vae.network)(vae.network.config)
    assert set(vae.get_sd()) == set(network.state_dict())


def test_preview_while_sampling_shows_the_picture(host, model, vae):
    scene = sample_scene(np.random.default_rng(11), num_objects=1)
    frame = torch.from_numpy(np.ascontiguousarray(render(scene, 128, 1))).float() / 255
    latents = model.model.process_latent_in(vae.encode(frame))
    previewer = host.module("latent_preview").Latent2RGBPreviewer(
        model.model.latent_format.latent_rgb_factors,
        model.model.latent_format.latent_rgb_factors_bias,
    )
    seen = torch.from_numpy(np.array(previewer.decode_latent_to_preview(latents))) / 255
    expected = avg_pool2d(frame.permute(0, 3, 1, 2), 8)[0].permute(1, 2, 0)
    assert (seen - expected).square().mean().sqrt() < 0.08
