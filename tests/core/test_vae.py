"""The autoencoders by themselves: shapes, gradients, pieces, streaming, errors."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from kandinsky_core.family.config import ImageVAEConfig, VideoVAEConfig
from kandinsky_core.family.variants import VAES
from kandinsky_core.models import ImageVAE, Tiles, VideoVAE
from kandinsky_core.models.vae import causal
from kandinsky_core.models.vae.latent_space import to_model_space, to_vae_space

TINY = VideoVAEConfig((8, 8, 16, 16), layers_per_block=1, latent_channels=4, norm_num_groups=4)
PATCHED = VideoVAEConfig(
    (16, 16, 16),
    layers_per_block=1,
    latent_channels=4,
    norm_num_groups=4,
    mid_block_attention=False,
    patch_size=4,
)


def make(config: VideoVAEConfig = TINY) -> VideoVAE:
    torch.manual_seed(0)
    return VideoVAE(config).eval().requires_grad_(False)


def test_nano_row():
    vae = VideoVAE(VAES["nano"], device="meta")
    assert sum(p.numel() for p in vae.parameters()) <= 3.5e6
    mean, logvar = vae.moments(torch.empty(2, 3, 17, 128, 128, device="meta"))
    assert mean.shape == logvar.shape == (2, 16, 5, 16, 16)
    assert vae.decode(mean).shape == (2, 3, 17, 128, 128)


@pytest.mark.parametrize(("name", "scale"), [("hunyuan", 0.476986), ("flux", 0.3611)])
def test_latents_are_scaled_as_the_transformers_were_trained(name, scale):
    """The published factors; the reference shifts neither, though FLUX itself does."""
    latents = torch.tensor([-2.0, 0.0, 1.0])
    assert torch.equal(to_model_space(latents, VAES[name]), latents * scale)
    torch.testing.assert_close(to_vae_space(latents * scale, VAES[name]), latents)
    shifted = replace(VAES[name], shift_factor=0.5)
    assert torch.equal(to_model_space(latents, shifted), (latents - 0.5) * scale)
    torch.testing.assert_close(to_vae_space((latents - 0.5) * scale, shifted), latents)


@pytest.mark.parametrize("config", [TINY, PATCHED])
@pytest.mark.parametrize("frames", [1, 5, 9])
def test_shapes(config, frames):
    latents = make(config).encode(torch.zeros(1, 3, frames, 16, 24))
    assert latents.shape == (1, 4, (frames - 1) // 4 + 1, 2, 3)
    assert make(config).decode(latents).shape == (1, 3, frames, 16, 24)


def test_pixels_fold_as_pixel_unshuffle_does():
    seen = []
    vae = make(PATCHED)
    vae.encoder.register_forward_hook(lambda _module, args, _out: seen.append(args[0]))
    vae.decoder.register_forward_hook(lambda _module, _args, out: seen.append(out))
    pixels = torch.rand(1, 3, 1, 16, 24)
    decoded = vae.decode(vae.encode(pixels))
    folded, unfolded = seen
    torch.testing.assert_close(folded[:, :, 0], F.pixel_unshuffle(pixels[:, :, 0], 4))
    torch.testing.assert_close(decoded[:, :, 0], F.pixel_shuffle(unfolded[:, :, 0], 4))


def test_gradients_reach_every_parameter():
    vae = make(TINY).requires_grad_(True)
    mean, logvar = vae.moments(torch.rand(1, 3, 5, 16, 16))
    (vae.decode(mean + (0.5 * logvar).exp()).abs().mean()).backward()
    assert not [name for name, p in vae.named_parameters() if p.grad is None]


@pytest.mark.parametrize("config", [TINY, PATCHED])
def test_pieces_equal_the_whole(config, monkeypatch):
    vae = make(config)
    pixels, latents = torch.rand(2, 3, 13, 16, 24), torch.randn(2, 4, 4, 2, 3)
    encoded, decoded = vae.encode(pixels), vae.decode(latents)
    convolutions = []
    pieces = causal.CausalConv3d.in_pieces
    monkeypatch.setattr(
        causal.CausalConv3d,
        "in_pieces",
        lambda self, *args: convolutions.append(self) or pieces(self, *args),
    )
    monkeypatch.setattr(causal, "PIECE_ELEMENTS", 300)
    torch.testing.assert_close(vae.encode(pixels), encoded, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(vae.decode(latents), decoded, atol=1e-5, rtol=1e-4)
    assert len(convolutions) > 20


@pytest.mark.parametrize("in_pieces", [False, True])
def test_norm_in_bf16_rounds_results_alone(in_pieces, monkeypatch):
    """Statistics in bf16 would be off by 2^-9 of a mean that is ten standard deviations."""
    torch.manual_seed(0)
    norm = nn.GroupNorm(16, 16, eps=1e-6).requires_grad_(False)
    nn.init.uniform_(norm.weight, 0.5, 1.5)
    nn.init.uniform_(norm.bias, -0.5, 0.5)
    norm.bfloat16()
    identity = causal.CausalKit(nn, {"dtype": torch.bfloat16}).conv(16, 16, 1)
    identity.requires_grad_(False)
    nn.init.dirac_(identity.conv.weight)
    nn.init.zeros_(identity.conv.bias)
    noise = torch.randn(2, 16, 5, 24, 24)
    # one mean for all frames of a group: the errors of several would cancel
    mean = 8 + 4 * torch.rand(2, 16, 1, 1, 1)
    x = causal.arrange((noise - noise.mean((-2, -1), keepdim=True) + mean).bfloat16())
    if in_pieces:
        monkeypatch.setattr(causal, "PIECE_ELEMENTS", 500)
    weight, bias = norm.weight.double(), norm.bias.double()
    exact = F.silu(F.group_norm(x.double(), norm.num_groups, weight, bias, norm.eps))
    error = (identity(x, norm).double() - exact).norm() / exact.norm()
    assert error < 2 * 2**-9  # two roundings, each by 2^-9: sqrt(2) of it


def test_mode_is_the_default_and_a_generator_samples():
    vae, pixels = make(), torch.rand(1, 3, 1, 64, 64)
    mean, logvar = vae.moments(pixels)
    assert torch.equal(vae.encode(pixels), mean)
    draws = [vae.encode(pixels, generator=torch.Generator().manual_seed(s)) for s in (1, 1, 2)]
    assert torch.equal(draws[0], draws[1])
    assert not torch.equal(draws[0], draws[2])
    noise = (draws[0] - mean) / (0.5 * logvar).exp()
    assert abs(float(noise.mean())) < 0.2
    assert abs(float(noise.std()) - 1) < 0.2


def test_frames_stream_in_order_with_progress():
    vae, latents = make(), torch.randn(1, 4, 9, 2, 3)
    tiling = Tiles.strided((9, 2, 3), (5, 2, 3), (3, 2, 3))
    progress = []
    chunks = list(
        vae.decode_frames(latents, tiling=tiling, on_tile=lambda *args: progress.append(args))
    )
    assert [chunk.shape[2] for chunk in chunks] == [13, 12, 8]
    assert progress == [(1, 3), (2, 3), (3, 3)]
    assert torch.equal(torch.cat(chunks, dim=2), vae.decode(latents, tiling=tiling))


def test_on_tile_can_cancel():
    class CancelledError(Exception):
        pass

    def cancel(_done: int, _total: int) -> None:
        raise CancelledError

    with pytest.raises(CancelledError):
        make().decode(torch.randn(1, 4, 1, 2, 2), on_tile=cancel)


def test_one_tile_equals_no_tiles():
    vae, latents = make(), torch.randn(1, 4, 3, 2, 3)
    tiling = Tiles.strided((3, 2, 3), (9, 8, 8), (8, 4, 4))
    assert tiling == Tiles.whole((3, 2, 3))
    assert torch.equal(vae.decode(latents, tiling=tiling), vae.decode(latents))


def test_tiled_equals_untiled_away_from_seams():
    """Exact only without group norm, whose statistics differ from tile to tile."""
    vae = make(VideoVAEConfig((4, 4), 1, 4, 4, 2, 1, mid_block_attention=False))
    for module in list(vae.modules()):
        for name, child in module.named_children():
            if isinstance(child, nn.GroupNorm):
                setattr(module, name, nn.Identity())
    latents = torch.randn(1, 4, 1, 3, 56)
    whole = vae.decode(latents)
    tiled = vae.decode(latents, tiling=Tiles.strided((1, 3, 56), (1, 3, 32), (1, 3, 24)))
    # Receptive field, in cells: 1 + 4 + 4 before the enlargement, (1 + 4 + 1) / 2 after it. So
    # what a tile cannot see spreads 12 cells inwards from its edges at 24 and 32.
    far = torch.cat([torch.arange(0, 2 * 20), torch.arange(2 * 36, 2 * 56)])
    torch.testing.assert_close(tiled[..., far], whole[..., far], atol=1e-5, rtol=1e-5)
    near = slice(2 * 24, 2 * 32)
    assert not torch.allclose(tiled[..., near], whole[..., near], atol=1e-4)


def test_dtype_of_the_result_is_the_callers():
    vae = make().to(torch.bfloat16)
    assert vae.encode(torch.rand(1, 3, 1, 16, 16)).dtype == torch.float32
    assert vae.decode(torch.randn(1, 4, 1, 2, 2)).dtype == torch.float32
    assert vae.decode(torch.randn(1, 4, 1, 2, 2).bfloat16()).dtype == torch.bfloat16


@pytest.mark.parametrize(
    ("shape", "words"),
    [
        ((1, 3, 6, 16, 16), "6 frames.*4 k \\+ 1.*crop to 5 frames"),
        ((1, 3, 5, 20, 16), "20 x 16.*multiples of 8.*16 x 16"),
        ((1, 4, 5, 16, 16), "expected \\(batch, 3"),
        ((3, 5, 16, 16), "expected \\(batch, 3"),
    ],
)
def test_pixels_that_do_not_fit(shape, words):
    with pytest.raises(ValueError, match=words):
        make().encode(torch.zeros(shape))


def test_latents_that_do_not_fit():
    with pytest.raises(ValueError, match="expects \\(batch, 4"):
        make().decode(torch.zeros(1, 16, 1, 2, 2))
    image = ImageVAE(ImageVAEConfig((8, 8), 1, 4, 4, 2))
    with pytest.raises(ValueError, match="takes one"):
        image.decode(torch.zeros(1, 4, 2, 2, 2))
