"""The last step of the autoencoder's training: axes and scales of its latents."""

from __future__ import annotations

import pytest
import torch

from kandinsky_core.family.config import VideoVAEConfig
from kandinsky_core.models import VideoVAE
from kandinsky_core.training.stages.vae_balance import change_basis, find_basis

TINY_VAE = VideoVAEConfig(
    (8, 8, 8),
    layers_per_block=1,
    latent_channels=4,
    norm_num_groups=2,
    mid_block_attention=False,
    patch_size=4,
)


@pytest.fixture
def vae():
    torch.manual_seed(0)
    return VideoVAE(TINY_VAE).requires_grad_(False)


@pytest.fixture
def clips():
    generator = torch.Generator().manual_seed(1)
    return [torch.rand(1, 3, 5, 32, 32, generator=generator) * 2 - 1 for _ in range(6)]


def test_pictures_stay_the_same(vae, clips):
    before = [vae.decode(vae.encode(clip)) for clip in clips]
    change_basis(vae, find_basis(vae, clips))
    for clip, expected in zip(clips, before, strict=True):
        torch.testing.assert_close(vae.decode(vae.encode(clip)), expected, atol=1e-4, rtol=0)


def test_channels_are_uncorrelated_and_sorted(vae, clips):
    change_basis(vae, find_basis(vae, clips))
    latents = torch.cat([vae.encode(clip) for clip in clips]).transpose(0, 1).flatten(1)
    covariance = torch.cov(latents)
    variances = covariance.diagonal()
    assert latents.mean(1).abs().max() < 1e-3
    assert (covariance - variances.diag()).abs().max() < 1e-3
    assert variances.mean().item() == pytest.approx(1, abs=1e-2)
    assert (variances.diff() < 0).all()


def test_first_channel_makes_the_picture(vae, clips):
    change_basis(vae, find_basis(vae, clips))

    def loss_without(channel):
        total = 0.0
        for clip in clips:
            latents = vae.encode(clip)
            whole = vae.decode(latents)
            latents[:, channel] = 0
            total += (vae.decode(latents) - whole).square().mean().item()
        return total

    assert loss_without(0) > 2 * loss_without(TINY_VAE.latent_channels - 1)


def test_posterior_gets_the_variance_of_the_new_channels(vae, clips):
    vae.quant_conv.weight[4:] = 0
    vae.quant_conv.bias[4:] = torch.tensor([0.1, 0.2, 0.3, 0.4]).log()
    basis = find_basis(vae, clips)
    change_basis(vae, basis)
    _, logvar = vae.moments(clips[0])
    expected = basis.matrix @ torch.diag(torch.tensor([0.1, 0.2, 0.3, 0.4])) @ basis.matrix.T
    torch.testing.assert_close(logvar[0, :, 0, 0, 0].exp(), expected.diagonal())
