"""Both autoencoders against diffusers, with shared random weights."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import nn

from kandinsky_core.family.config import ImageVAEConfig, VideoVAEConfig
from kandinsky_core.family.variants import VAES
from kandinsky_core.models import ImageVAE, Tiles, VideoVAE
from kandinsky_core.models.vae import causal
from kandinsky_core.models.vae.keys import to_original_key

diffusers = pytest.importorskip("diffusers")

VIDEO = VideoVAEConfig((8, 8, 16, 16), layers_per_block=1, latent_channels=4, norm_num_groups=4)
IMAGE = ImageVAEConfig((8, 8, 16, 16), layers_per_block=1, latent_channels=4, norm_num_groups=4)


def reference_video(config: VideoVAEConfig):
    return diffusers.AutoencoderKLHunyuanVideo(
        latent_channels=config.latent_channels,
        block_out_channels=config.block_out_channels,
        layers_per_block=config.layers_per_block,
        norm_num_groups=config.norm_num_groups,
        mid_block_add_attention=config.mid_block_attention,
    ).eval()


def reference_image(config: ImageVAEConfig):
    stages = len(config.block_out_channels)
    return diffusers.AutoencoderKL(
        down_block_types=["DownEncoderBlock2D"] * stages,
        up_block_types=["UpDecoderBlock2D"] * stages,
        latent_channels=config.latent_channels,
        block_out_channels=config.block_out_channels,
        layers_per_block=config.layers_per_block,
        norm_num_groups=config.norm_num_groups,
        use_quant_conv=False,
        use_post_quant_conv=False,
    ).eval()


@pytest.fixture(autouse=True)
def _no_grad():
    with torch.no_grad():
        yield


def video_pair(config: VideoVAEConfig = VIDEO, seed: int = 0):
    torch.manual_seed(seed)
    reference = reference_video(config)
    for module in reference.modules():
        if isinstance(module, nn.GroupNorm):  # ones and zeros would hide a lost factor or bias
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.uniform_(module.bias, -0.5, 0.5)
    vae = VideoVAE(config).eval()
    vae.load_state_dict(reference.state_dict())
    return vae, reference


def assert_close(actual: torch.Tensor, expected: torch.Tensor, atol: float = 1e-4) -> None:
    """Compare on the scale of the expected values."""
    assert actual.shape == expected.shape
    scale = max(1.0, float(expected.std()))
    torch.testing.assert_close(actual / scale, expected / scale, atol=atol, rtol=0)


@pytest.mark.parametrize("attention", [True, False])
@pytest.mark.parametrize("frames_size", [(1, 16, 24), (5, 24, 40), (13, 8, 16)])
def test_video_vae_equals_diffusers(attention, frames_size):
    vae, reference = video_pair(replace(VIDEO, mid_block_attention=attention))
    pixels = torch.rand(2, 3, *frames_size) * 2 - 1
    posterior = reference.encode(pixels).latent_dist
    mean, logvar = vae.moments(pixels)
    assert_close(mean, posterior.mean)
    assert_close(logvar, posterior.logvar)
    assert torch.equal(vae.encode(pixels), mean)
    latents = torch.randn_like(mean)
    assert_close(vae.decode(latents), reference.decode(latents).sample)


def test_image_vae_equals_diffusers():
    torch.manual_seed(0)
    reference = reference_image(IMAGE)
    vae = ImageVAE(IMAGE).eval()
    vae.load_state_dict(reference.state_dict())
    pixels = torch.rand(2, 3, 1, 24, 40) * 2 - 1
    posterior = reference.encode(pixels[:, :, 0]).latent_dist
    mean, logvar = vae.moments(pixels)
    assert_close(mean[:, :, 0], posterior.mean)
    assert_close(logvar[:, :, 0], posterior.logvar)
    latents = torch.randn_like(mean)
    assert_close(vae.decode(latents)[:, :, 0], reference.decode(latents[:, :, 0]).sample)


@pytest.mark.parametrize(
    ("name", "vae_class", "reference"),
    [("hunyuan", VideoVAE, reference_video), ("flux", ImageVAE, reference_image)],
)
def test_full_size_names_and_shapes_equal_diffusers(name, vae_class, reference):
    with torch.device("meta"):
        expected = reference(VAES[name]).state_dict()
    actual = vae_class(VAES[name], device="meta").state_dict()
    assert {k: v.shape for k, v in actual.items()} == {k: v.shape for k, v in expected.items()}


def test_spans_of_time_equal_the_references_default():
    """Diffusers decodes and encodes a clip of more than 16 frames in spans of 17, every 12."""
    vae, reference = video_pair()
    latents = torch.randn(1, 4, 9, 2, 3)
    tiling = Tiles.strided((9, 2, 3), (5, 2, 3), (3, 2, 3))
    assert_close(vae.decode(latents, tiling=tiling), reference.decode(latents).sample)
    pixels = torch.rand(1, 3, 33, 16, 24) * 2 - 1
    mean, logvar = vae.moments(pixels, tiling=tiling)
    posterior = reference.encode(pixels).latent_dist
    assert_close(mean, posterior.mean)
    assert_close(logvar, posterior.logvar)


def test_tiles_in_space_and_time_equal_the_reference_outside_corners():
    vae, reference = video_pair()
    reference.enable_tiling(32, 32, 16, 24, 24, 12)
    grid = (6, 5, 8)
    tiling = Tiles.strided(grid, (5, 4, 4), (3, 3, 3))
    latents = torch.randn(1, 4, *grid)
    ours, theirs = vae.decode(latents, tiling=tiling), reference.decode(latents).sample
    # four tiles meet in rows 24-31 and columns 24-31 or 48-55: there the ramps multiply here
    corner = torch.zeros(40, 64, dtype=torch.bool)
    corner[24:32, 24:32] = corner[24:32, 48:56] = True
    assert_close(ours[..., ~corner], theirs[..., ~corner])
    assert not torch.allclose(ours[..., corner], theirs[..., corner], atol=1e-4)

    pixels = torch.rand(1, 3, 21, 40, 64) * 2 - 1
    mean = vae.encode(pixels, tiling=tiling)
    expected = reference.encode(pixels).latent_dist.mean
    assert_close(mean, expected)  # one shared cell per side: the ramps are 0 and the rules agree


def test_corner_of_four_tiles_is_blended_bilinearly():
    vae, reference = video_pair()
    latents = torch.randn(1, 4, 1, 5, 5)
    tiling = Tiles.strided((1, 5, 5), (1, 4, 4), (1, 3, 3))
    tiles = [
        [reference.decode(latents[:, :, :, y : y + 4, x : x + 4]).sample for x in (0, 3)]
        for y in (0, 3)
    ]
    ramp = torch.arange(8) / 8
    top = tiles[0][0][..., 24:, 24:] * (1 - ramp) + tiles[0][1][..., 24:, :8] * ramp
    bottom = tiles[1][0][..., :8, 24:] * (1 - ramp) + tiles[1][1][..., :8, :8] * ramp
    expected = top * (1 - ramp[:, None]) + bottom * ramp[:, None]
    assert_close(vae.decode(latents, tiling=tiling)[..., 24:32, 24:32], expected)


def rms(errors: list[float]) -> float:
    return math.sqrt(sum(error**2 for error in errors) / len(errors))


def relative_error(found: torch.Tensor, exact: torch.Tensor) -> float:
    return float((found.float() - exact).norm() / exact.norm())


def bf16_tolerance(network: nn.Module) -> float:
    """Twice the relative error that independent roundings in depth add up to, as their root.

    A rounding to bf16 is off by 2^-9 (at most 2^-8). A layer has two: a convolution of its weights
    and its result, a norm of its result and the SiLU's. Twice, since a norm takes means away and
    leaves the errors.
    """
    layers = sum(not list(module.children()) for module in network.modules())
    return 2 * 2**-9 * math.sqrt(2 * layers)


def test_bf16_is_close_to_fp32():
    encode_errors, decode_errors = [], []
    for seed in range(4):
        torch.manual_seed(seed)
        vae = VideoVAE(VAES["nano"])
        pixels, latents = torch.rand(1, 3, 5, 32, 32) * 2 - 1, torch.randn(1, 16, 2, 4, 4)
        encoded, decoded = vae.encode(pixels), vae.decode(latents)
        vae.to(torch.bfloat16)
        encode_errors.append(relative_error(vae.encode(pixels), encoded))
        decode_errors.append(relative_error(vae.decode(latents), decoded))
    assert rms(encode_errors) < bf16_tolerance(vae.encoder)
    assert rms(decode_errors) < bf16_tolerance(vae.decoder)


@pytest.mark.parametrize("in_pieces", [False, True])
def test_bf16_is_as_near_to_fp32_as_the_reference_in_bf16(monkeypatch, in_pieces):
    """Random layers lose as much in diffusers' hands as in ours.

    Differs: channels lie innermost on a CPU, which adds up in another order. A single draw's errors
    then differ by up to half either way, so many draws are compared; the limit of sqrt(2) is
    what twice the reference's roundings would cost.
    """
    if in_pieces:
        monkeypatch.setattr(causal, "PIECE_ELEMENTS", 500)
    errors = {"encode": ([], []), "decode": ([], [])}
    for seed in range(12):
        vae, reference = video_pair(seed=seed)
        latents = torch.randn(1, 4, 2, 6, 6).bfloat16()
        pixels = torch.rand(1, 3, 5, 24, 24).bfloat16()
        encoded, decoded = vae.encode(pixels.float()), vae.decode(latents.float())
        vae, reference = vae.bfloat16(), reference.bfloat16()
        ours = vae.encode(pixels), vae.decode(latents)
        theirs = reference.encode(pixels).latent_dist.mean, reference.decode(latents).sample
        for of_both, exact, *both in zip(
            errors.values(), (encoded, decoded), ours, theirs, strict=True
        ):
            for of_one, found in zip(of_both, both, strict=True):
                of_one.append(relative_error(found, exact))
    for (of_ours, of_theirs), network in zip(
        errors.values(), (vae.encoder, vae.decoder), strict=True
    ):
        assert rms(of_ours) < math.sqrt(2) * rms(of_theirs)
        assert rms(of_ours) < bf16_tolerance(network)


def test_original_image_names_are_those_that_diffusers_converts():
    """diffusers' single-file conversion turns our original names back into ours."""
    utils = pytest.importorskip("diffusers.loaders.single_file_utils")
    state = ImageVAE(VAES["flux"], device="meta").state_dict()
    original = {}
    for key, value in state.items():
        linear = "attentions.0.to_" in key and value.ndim == 2
        original[to_original_key(key, 4)] = value[..., None, None] if linear else value
    config = dict(reference_image(ImageVAEConfig((8, 8, 8, 8), 2, 4, 4)).config)
    converted = utils.convert_ldm_vae_checkpoint(original, config)
    assert {k: v.shape for k, v in converted.items()} == {k: v.shape for k, v in state.items()}
