"""The training loop, the objectives and the two stages of the nano family, at toy sizes."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from kandinsky_core.errors import CheckpointError
from kandinsky_core.family.config import NanoTextConfig
from kandinsky_core.family.settings import DEFAULT_RELEASES, RELEASES
from kandinsky_core.family.shapes import Geometry, VideoShape
from kandinsky_core.family.variants import NANO_VIDEO_VAE, VARIANTS
from kandinsky_core.flow import VisualCondition
from kandinsky_core.models import CrossDiT, VideoVAE
from kandinsky_core.text import NanoTextEncoder
from kandinsky_core.text.nano import NUM_SPECIAL_IDS
from kandinsky_core.training.alignment import Readers
from kandinsky_core.training.data.latents import (
    Bucket,
    LatentCache,
    encode_bucket,
    sample_training_scene,
)
from kandinsky_core.training.distributed import Group
from kandinsky_core.training.layout import OBJECT_ENTRIES, scene_layout
from kandinsky_core.training.loop import Loop, LoopSettings, step_generator
from kandinsky_core.training.objectives import (
    FOCUS,
    LatentBatch,
    flow_loss,
    focus,
    network_input,
    sample_times,
)
from kandinsky_core.training.optim import Muon, Schedule, make_optimizers, orthogonalize
from kandinsky_core.training.stages.pretrain import (
    BATCH,
    CACHE,
    PHASES,
    NanoModel,
    Phase,
    make_objective,
)
from kandinsky_core.training.stages.vae import (
    COVARIANCE_WEIGHT,
    CYCLE,
    EDGE_WEIGHT,
    FIRST_IMAGES,
    KL_WEIGHT,
    CropKind,
    cut_around_object,
    decorrelation_loss,
    draw_crops,
    fresh_vae,
    reconstruction_loss,
    to_pixels,
    vae_losses,
)
from kandinsky_core.training.stages.vae import sample_training_scene as sample_vae_scene
from kandinsky_core.training.world import ObjectSpec, Scene, is_held_out, vocabulary
from kandinsky_core.training.world.scene import PAN, ZOOM

TINY = replace(
    VARIANTS["debug"], latent_channels=4, text_dim=16, pooled_dim=16, num_visual_blocks=1
)
TINY_VAE = replace(
    NANO_VIDEO_VAE, block_out_channels=(8, 8, 8), norm_num_groups=2, latent_channels=4
)
TOY = Bucket(64, 5)


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)


def tiny_model() -> NanoModel:
    words = vocabulary()
    config = NanoTextConfig(NUM_SPECIAL_IDS + len(words), dim=16, num_layers=1, num_heads=2)
    return NanoModel(CrossDiT(TINY), NanoTextEncoder(config, words))


def toy_batch(rows: int = 4) -> LatentBatch:
    generator = torch.Generator().manual_seed(3)
    latents = torch.randn(rows, 4, 2, 4, 4, generator=generator)
    given = torch.arange(rows) % 2 == 0
    layout = torch.zeros(rows, 2, 3, OBJECT_ENTRIES)
    prompts = ["a red circle"] * rows
    return LatentBatch(latents, latents[:, :, :1] + 1, given, prompts, layout)


def linear_loop(run_dir, num_steps=6) -> Loop:
    torch.manual_seed(1)
    model = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 1))

    def objective(step):
        x = torch.randn(16, 4, generator=step_generator(7, step))
        return {"loss": (model(x) - x.sum(1, keepdim=True)).square().mean()}

    settings = LoopSettings(Schedule(num_steps, warmup=2, decay=2), save_every=100, log_every=100)
    return Loop(model, objective, make_optimizers(model, 1e-2), settings, run_dir)


def test_resumed_run_has_the_same_next_loss(tmp_path):
    whole = linear_loop(tmp_path / "whole")
    losses = [whole.train_step()["loss"] for _ in range(5)]

    first = linear_loop(tmp_path / "parts")
    for _ in range(3):
        first.train_step()
    first.save(first.checkpoint_path)
    second = linear_loop(tmp_path / "parts")
    assert second.step == 3
    assert [second.train_step()["loss"] for _ in range(2)] == losses[3:]
    for name, value in whole.ema_state().items():
        torch.testing.assert_close(second.ema_state()[name], value, rtol=0, atol=0)


def test_run_ends_with_the_schedule_and_saves(tmp_path):
    loop = linear_loop(tmp_path, num_steps=4)
    loop.run()
    assert loop.step == 4
    assert linear_loop(tmp_path).step == 4


def test_checkpoint_of_another_model_is_refused(tmp_path):
    linear_loop(tmp_path, num_steps=1).run()
    model = nn.Linear(3, 3)
    settings = LoopSettings(Schedule(1))
    with pytest.raises(CheckpointError, match="another model"):
        Loop(model, lambda _: {}, make_optimizers(model, 1e-2), settings, tmp_path)


def test_schedule_rises_stays_and_falls():
    schedule = Schedule(100, warmup=10, decay=20, final=0.5)
    assert schedule.factor(0) == pytest.approx(0.1)
    assert schedule.factor(50) == 1.0
    assert schedule.factor(90) == pytest.approx(0.75)
    assert schedule.factor(100) == 0.5


@pytest.mark.parametrize("shape", [(2, 6, 6), (1, 4, 9), (3, 9, 4)])
def test_orthogonalize_flattens_singular_values(shape):
    matrices = torch.randn(shape)
    values = torch.linalg.svdvals(orthogonalize(matrices, num_steps=8))
    assert values.min() > 0.5
    assert values.max() < 1.4
    u, _, v = torch.linalg.svd(matrices, full_matrices=False)
    alignment = (orthogonalize(matrices) * (u @ v)).sum((1, 2)) / min(shape[1:])
    assert alignment.min() > 0.8


@pytest.mark.skipif(not hasattr(torch.optim, "Muon"), reason="torch has Muon since 2.9")
def test_muon_steps_as_torchs_does_but_for_its_bf16(monkeypatch):
    monkeypatch.setattr(torch.Tensor, "bfloat16", torch.Tensor.float)
    torch.manual_seed(0)
    ours = [nn.Parameter(torch.randn(shape)) for shape in [(6, 6), (4, 9), (9, 4), (4, 9)]]
    theirs = [nn.Parameter(param.detach().clone()) for param in ours]
    rule = {"lr": 0.05, "momentum": 0.9, "weight_decay": 0.1}
    optimizers = (
        Muon(ours, **rule),
        torch.optim.Muon(theirs, **rule, adjust_lr_fn="match_rms_adamw"),
    )
    for _ in range(10):
        for one, other in zip(ours, theirs, strict=True):
            one.grad = torch.randn(one.shape)
            other.grad = one.grad.clone()
        for optimizer in optimizers:
            optimizer.step()
        for one, other in zip(ours, theirs, strict=True):
            torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-5)


class TwoProcesses(Group):
    """Stands for a group of two whose exchange adds what the other process computed."""

    def __init__(self, rank: int, exchange: list) -> None:
        super().__init__(rank, 2)
        object.__setattr__(self, "exchange", exchange)

    def sum_(self, tensors):
        self.exchange.append([tensor.clone() for tensor in tensors])


def test_two_processes_divide_the_work_of_muon():
    exchange: list = []
    for group in (Group(), TwoProcesses(0, exchange), TwoProcesses(1, exchange)):
        torch.manual_seed(0)
        params = [nn.Parameter(torch.randn(4, 4)) for _ in range(3)]
        for param in params:
            param.grad = torch.randn(4, 4)
        before = [param.detach().clone() for param in params]
        Muon(params, 0.1, group=group).step()
        if group.size == 1:
            alone = [
                (b - p.detach()) / (0.1 * 0.2 * 2) for b, p in zip(before, params, strict=True)
            ]
    for expected, *parts in zip(alone, *exchange, strict=True):
        torch.testing.assert_close(sum(parts), expected, atol=1e-5, rtol=1e-4)


def test_times_lean_towards_noise_and_are_stratified():
    times = sample_times(64, torch.Generator().manual_seed(0))
    assert ((times > 0) & (times < 1)).all()
    assert 0.6 < times.mean() < 0.85
    again = sample_times(64, torch.Generator().manual_seed(1))
    assert abs(times.mean() - again.mean()) < 0.02


def test_first_frame_rows_are_what_inference_builds():
    batch, x_t = toy_batch(), torch.randn(4, 4, 2, 4, 4)
    got = network_input(x_t, batch.first_frames, batch.given_first)
    for row in range(4):
        given = bool(batch.given_first[row])
        first = batch.first_frames[row : row + 1] if given else None
        condition = VisualCondition(first_frame=first)
        expected = condition.network_input(condition.impose(x_t[row : row + 1]), True)
        assert torch.equal(got[row : row + 1], expected)


def test_given_first_frame_has_no_loss():
    batch = toy_batch(2)
    batch = replace(batch, given_first=torch.ones(2, dtype=torch.bool))
    model = tiny_model()
    text = model.encode_text(batch.prompts)

    def loss(latents):
        generator = torch.Generator().manual_seed(5)
        return flow_loss(model.transformer, text, replace(batch, latents=latents), generator)

    changed = batch.latents.clone()
    changed[:, :, 0] += 10.0
    assert torch.equal(loss(batch.latents), loss(changed))


def test_latents_around_an_object_count_more_where_there_is_little_noise():
    star = ObjectSpec("star", "red", "medium", "still", x=0.5, y=-0.5)
    layout = scene_layout(Scene("gray", objects=(star,)), 1, 1)[None].expand(3, -1, -1, -1)
    weights = focus(layout, torch.tensor([1.0, 0.75, 0.2]), (16, 16))
    assert weights.shape == (3, 1, 1, 16, 16)
    # the cell at the object's middle, three quarters to the right and one down
    assert weights[:, 0, 0, 4, 12].tolist() == [1.0, 1 + FOCUS / 2, 1 + FOCUS]
    assert weights[:, 0, 0, 12, 4].tolist() == [1.0, 1.0, 1.0]
    empty = torch.zeros(1, 1, 3, layout.shape[-1])
    assert focus(empty, torch.zeros(1), (16, 16)).unique().tolist() == [1.0]


def test_pretraining_overfits_one_batch():
    model, batch = tiny_model(), toy_batch()
    optimizers = make_optimizers(model, 1e-2)
    losses = []
    for _ in range(60):
        generator = torch.Generator().manual_seed(5)
        loss = flow_loss(model.transformer, model.encode_text(batch.prompts), batch, generator)
        loss.backward()
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < 0.3 * losses[0]


def test_vae_step_lowers_the_loss():
    vae = VideoVAE(TINY_VAE)
    pixels = draw_crops(CropKind(64, 9, 5, 32, 2), np.random.default_rng(0))
    optimizers = make_optimizers(vae, 3e-3)
    losses = []
    for _ in range(12):
        loss = vae_losses(vae, pixels, torch.Generator().manual_seed(0))["loss"]
        loss.backward()
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < 0.8 * losses[0]


def test_decorrelation_is_zero_for_white_latents_and_grows_with_a_dominant_channel():
    white = torch.randn(2, 4, 5, 32, 32, generator=torch.Generator().manual_seed(0))
    assert decorrelation_loss(white).item() < 1e-2
    one_for_all = white[:, :1].expand(-1, 4, -1, -1, -1)  # covariance: ones everywhere
    assert decorrelation_loss(one_for_all).item() == pytest.approx(3.0, rel=0.1)
    loud = white * torch.tensor([3.0, 1.0, 1.0, 1.0]).reshape(1, 4, 1, 1, 1)
    assert decorrelation_loss(loud).item() == pytest.approx((9 - 1) ** 2 / 4, rel=0.1)


def test_reconstruction_loss_by_hand():
    pixels = torch.zeros(1, 3, 1, 2, 2)
    pixels += 0.5
    error = torch.tensor([[1.0, -1.0], [0.0, 2.0]])
    losses = reconstruction_loss(pixels + error, pixels)
    assert losses["l1"].item() == pytest.approx((1 + 1 + 0 + 2) / 4)
    assert losses["mse"].item() == pytest.approx((1 + 1 + 0 + 4) / 4)
    # to the right -2 and 2, downwards -1 and 3
    assert losses["edges"].item() == pytest.approx((2 + 2) / 2 + (1 + 3) / 2)
    whole = losses["l1"] + losses["mse"] + EDGE_WEIGHT * losses["edges"]
    assert losses["loss"].item() == pytest.approx(whole.item())


def test_losses_of_a_posterior_by_hand():
    """A network that always says mean 2, variance 1/4, and decodes to the pixels exactly."""

    class Fixed:
        def moments(self, _):
            latents = torch.ones(1, 2, 1, 64, 64)
            return 2 * latents, math.log(0.25) * latents

        def decode(self, latents):
            self.decoded = latents
            return pixels

    pixels = torch.rand(1, 3, 1, 8, 8)
    network = Fixed()
    losses = vae_losses(network, pixels, torch.Generator().manual_seed(0))
    assert network.decoded.mean().item() == pytest.approx(2, abs=0.02)
    assert network.decoded.std().item() == pytest.approx(0.5, abs=0.02)
    # KL of N(2, 1/4) from N(0, 1): (4 + 1/4 - 1 - ln 1/4) / 2
    assert losses["kl"].item() == pytest.approx((4 + 0.25 - 1 + math.log(4)) / 2)
    # without any variance the covariance is off by the identity alone: 2 entries of 2 channels
    assert losses["decorrelation"].item() == pytest.approx(1.0)
    assert losses["l1"].item() == losses["edges"].item() == 0
    assert losses["loss"].item() == pytest.approx(
        KL_WEIGHT * losses["kl"].item() + COVARIANCE_WEIGHT
    )


def test_fresh_vae_has_a_narrow_posterior():
    _, logvar = fresh_vae().moments(torch.zeros(1, 3, 1, 32, 32))
    assert logvar.max().item() == logvar.min().item() == -5.0


def test_crops_lie_inside_the_frames():
    rng = np.random.default_rng(0)
    for _ in range(20):
        scene = sample_vae_scene(rng)
        frames = np.zeros((3, 128, 128, 3), np.uint8)
        assert cut_around_object(frames, scene, 3, 64, rng).shape == (3, 64, 64, 3)


def test_every_size_that_is_trained_is_one_that_the_family_makes():
    nano = RELEASES[DEFAULT_RELEASES["nano"]]
    trained = {bucket for phase in PHASES for bucket in phase.shares}
    assert trained == set(CACHE) == set(BATCH)
    made = {(side, frames) for side, _ in nano.all_sizes for frames in nano.frame_choices}
    assert trained == made
    assert PHASES[-1].until == 1 and all(phase.until <= 1 for phase in PHASES)
    assert all(sum(phase.shares.values()) == pytest.approx(1) for phase in PHASES)


def test_every_crop_of_the_autoencoder_has_a_shape_that_it_takes():
    """Frames that the world renders in two sizes; crops of whole latents, not over the edge."""
    geometry = Geometry.of(VARIANTS["nano"], NANO_VIDEO_VAE)
    for kind in (FIRST_IMAGES, *CYCLE):
        assert kind.size in (128, 256)
        assert 1 <= kind.length <= kind.num_frames and kind.crop <= kind.size
        for frames, side in ((kind.num_frames, kind.size), (kind.length, kind.crop)):
            VideoShape(frames, side, side).check(geometry)


def test_bytes_become_pixels_between_minus_one_and_one():
    clip = np.zeros((2, 4, 5, 3), np.uint8)
    clip[1, 2, 3] = (0, 51, 255)
    pixels = to_pixels([clip, clip])
    assert pixels.shape == (2, 3, 2, 4, 5)
    assert pixels[1, :, 1, 2, 3].tolist() == pytest.approx([-1, -0.6, 1])
    assert (pixels[:, :, 0] == -1).all()


class Middle:
    """Draws the last of so many, and the middle of a range."""

    def integers(self, count):
        return count - 1

    def uniform(self, low, high, count):
        return np.full(count, (low + high) / 2)


@pytest.mark.parametrize(
    ("spec", "camera", "corner"),
    [
        # middle of the object, pixels: (x + 1) 64, (y + 1) 64; the corner is 32 before it
        (ObjectSpec("star", "red", "medium", "still", x=0.25, y=-0.125), "still", (24, 48)),
        (ObjectSpec("star", "red", "medium", "right", x=-0.25, travel=0.5), "still", (32, 48)),
        (ObjectSpec("star", "red", "medium", "still", x=0.2, y=0.1), "zoom_in", None),
        (ObjectSpec("star", "red", "medium", "still", x=-0.5), "pan_left", None),
        (ObjectSpec("star", "red", "medium", "still", x=1.0, y=-1.0), "still", (0, 64)),
    ],
    ids=["still", "moved", "zoomed", "panned", "at the edge"],
)
def test_a_crop_is_around_the_object_where_the_camera_shows_it(spec, camera, corner):
    if corner is None:  # at the last frame, by the world's own tables
        x = (spec.x + PAN) if camera == "pan_left" else spec.x * ZOOM
        y = spec.y * (ZOOM if camera == "zoom_in" else 1)
        corner = (round((y + 1) * 64 - 32), round((x + 1) * 64 - 32))
    rows, columns = np.mgrid[:128, :128].astype(np.uint8)
    frames = np.stack([np.stack([rows, columns, np.full_like(rows, n)], -1) for n in range(9)])
    cut = cut_around_object(frames, Scene("gray", camera, (spec,)), 3, 64, Middle())
    assert cut.shape == (3, 64, 64, 3)
    assert tuple(cut[0, 0, 0, :2]) == corner
    assert cut[:, 0, 0, 2].tolist() == [6, 7, 8]


@pytest.mark.parametrize("sample", [sample_training_scene, sample_vae_scene])
def test_training_never_sees_what_is_held_out(sample):
    rng = np.random.default_rng(0)
    assert not any(is_held_out(sample(rng)) for _ in range(200))


def test_cache_is_resumable_and_feeds_the_objective(tmp_path):
    vae = VideoVAE(TINY_VAE)
    group = Group()
    encode_bucket(vae, TOY, 4, tmp_path, seed=0, group=group)
    shards = sorted(tmp_path.glob("*.safetensors"))
    kept = [path.read_bytes() for path in shards]
    shards[1].unlink()
    encode_bucket(vae, TOY, 4, tmp_path, seed=0, group=group)
    assert [path.read_bytes() for path in shards] == kept

    cache = LatentCache.load(tmp_path, TOY, TINY_VAE)
    batch = cache.draw(64, torch.Generator().manual_seed(0))
    assert batch.latents.shape == (64, 4, 2, 8, 8)
    assert batch.first_frames.shape == (64, 4, 1, 8, 8)
    assert 0 < sum(prompt == "" for prompt in batch.prompts) < 20
    assert 0 < batch.given_first.sum() < 32

    model = tiny_model()
    readers = Readers(TINY.model_dim, TINY.pooled_dim)
    objective = make_objective(
        model, readers, {TOY: cache}, 10, 0, batch={TOY: 2}, phases=[Phase(1.0, {TOY: 1.0})]
    )
    values = objective(3)
    assert values["loss"].item() == objective(3)["loss"].item()
    values["loss"].backward()
    assert all(param.grad is not None for param in readers.parameters())


def test_stars_are_drawn_more_often_than_there_are(tmp_path):
    vae = VideoVAE(TINY_VAE)
    encode_bucket(vae, TOY, 40, tmp_path, seed=0, group=Group())
    cache = LatentCache.load(tmp_path, TOY, TINY_VAE)
    stars = torch.tensor([any("star" in text for text in texts) for texts in cache.captions])
    is_star = dict.fromkeys(text for i in stars.nonzero() for text in cache.captions[i])
    batch = cache.draw(2000, torch.Generator().manual_seed(0))
    drawn = [prompt in is_star for prompt in batch.prompts if prompt]
    assert sum(drawn) / len(drawn) > 1.3 * stars.float().mean()


def test_cache_of_an_older_version_is_named(tmp_path):
    path = tmp_path / f"{TOY.name}-0000.safetensors"
    save_file({"latents": torch.zeros(1, 4, 2, 8, 8)}, path, metadata={"captions": "[[]]"})
    with pytest.raises(ValueError, match=r"lacks first_frames, labels, layouts.*older"):
        LatentCache.load(tmp_path, TOY, TINY_VAE)


def test_saved_model_loads_again(tmp_path):
    model = NanoModel.fresh()
    prompts = ["a red circle", ""]
    model.save(tmp_path)
    again = NanoModel.load(tmp_path)
    expected, got = (each.encode_text(prompts).tokens for each in (model, again))
    torch.testing.assert_close(got, expected.float(), atol=5e-3, rtol=5e-3)
    weights, loaded = model.transformer.state_dict(), again.transformer.state_dict()
    assert all(torch.equal(loaded[name], value.half().float()) for name, value in weights.items())
