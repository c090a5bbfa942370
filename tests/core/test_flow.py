"""Path, schedule, guidance, conditions and the sampler: by identities and known integrals."""

from __future__ import annotations

import math

import pytest
import torch

from kandinsky_core.flow import (
    VisualCondition,
    guide,
    interpolate,
    make_noise,
    normalize_first_frames,
    predict_latents,
    sample,
    shift_times,
    timesteps,
    velocity_target,
)


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_path_ends_at_latents_and_noise() -> None:
    latents, noise = normal(2, 3, 4, seed=1), normal(2, 3, 4, seed=2)
    assert torch.equal(interpolate(latents, noise, torch.zeros(2)), latents)
    assert torch.equal(interpolate(latents, noise, torch.ones(2)), noise)


def test_true_velocity_leads_back_to_the_latents() -> None:
    latents, noise = normal(3, 4, 2, 2, 2, seed=1), normal(3, 4, 2, 2, 2, seed=2)
    t = torch.tensor([0.1, 0.5, 0.9])
    x_t = interpolate(latents, noise, t)
    found = predict_latents(x_t, velocity_target(latents, noise), t)
    assert (found - latents).abs().max() < 1e-6


def test_velocity_is_the_derivative_of_the_path() -> None:
    latents, noise = normal(1, 8, seed=1).double(), normal(1, 8, seed=2).double()
    h = 1e-6
    ahead, behind = (interpolate(latents, noise, torch.tensor([0.4 + d])) for d in (h, -h))
    slope = (ahead - behind) / (2 * h)
    assert (slope - velocity_target(latents, noise)).abs().max() < 1e-2


def test_schedule_of_the_official_sampler() -> None:
    # shift 5, 4 steps, worked out by hand: t = 3/4, 1/2, 1/4 become 15/16, 5/6, 5/8
    expected = torch.tensor([1, 15 / 16, 5 / 6, 5 / 8, 0])
    assert (timesteps(4, 5.0) - expected).abs().max() < 1e-6


def test_shift_has_an_inverse_and_composes() -> None:
    t = torch.linspace(0, 1, 11, dtype=torch.float64)
    assert (shift_times(shift_times(t, 5.0), 1 / 5.0) - t).abs().max() < 1e-12
    twice = shift_times(shift_times(t, 2.0), 3.0)
    assert (twice - shift_times(t, 6.0)).abs().max() < 1e-12


@pytest.mark.parametrize("num_steps", [1, 4, 16, 50])
def test_schedule_falls_from_one_to_zero(num_steps: int) -> None:
    times = timesteps(num_steps, 10.0)
    assert len(times) == num_steps + 1
    assert times[0] == 1
    assert times[-1] == 0
    assert (times.diff() < 0).all()


@pytest.mark.parametrize(("num_steps", "shift"), [(0, 5.0), (4, 0.0), (4, -1.0)])
def test_bad_schedule_is_refused(num_steps: int, shift: float) -> None:
    with pytest.raises(ValueError, match=r"num_steps must be|shift must be"):
        timesteps(num_steps, shift)


def test_guidance_identities() -> None:
    cond, uncond = normal(2, 3, seed=1), normal(2, 3, seed=2)
    assert torch.equal(guide(cond, uncond, 1.0), cond)
    assert torch.equal(guide(cond, uncond, 0.0), uncond)
    assert (guide(cond, uncond, 5.0) - (5 * cond - 4 * uncond)).abs().max() < 1e-5


def test_a_constant_velocity_is_integrated_exactly() -> None:
    latents, noise = normal(1, 4, 2, 2, 2, seed=1), normal(1, 4, 2, 2, 2, seed=2)
    steps = list(sample(lambda *_: noise - latents, noise, timesteps(7, 5.0)))
    assert (steps[-1].latents - latents).abs().max() < 1e-5
    assert [step.index for step in steps] == list(range(7))
    assert all((step.denoised - latents).abs().max() < 1e-5 for step in steps)


def test_a_linear_ode_converges_to_its_solution() -> None:
    # dx/dt = x, from t = 1 to 0: x(0) = x(1) / e
    noise = normal(1, 4, 1, 2, 2)
    errors = []
    for num_steps in (50, 100):
        *_, last = sample(lambda x, _t: x, noise, timesteps(num_steps, 1.0))
        errors.append((last.latents - noise / math.e).abs().max().item())
    assert errors[1] < 0.01
    assert errors[0] / errors[1] == pytest.approx(2, abs=0.1)  # first order


def test_first_frame_is_imposed_before_every_step_and_at_the_end() -> None:
    first = normal(1, 4, 1, 2, 2, seed=5)
    condition = VisualCondition(first_frame=first)
    seen = []

    def velocity(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        seen.append(x[:, :, :1].clone())
        return normal(*x.shape, seed=int(1000 * t))

    noise = normal(2, 4, 3, 2, 2, seed=6)
    *_, last = sample(velocity, noise, timesteps(3, 5.0), condition=condition)
    assert len(seen) == 3
    assert all(torch.equal(x, first.expand_as(x)) for x in seen)
    assert torch.equal(last.latents[:, :, :1], first.expand(2, -1, -1, -1, -1))
    assert torch.equal(last.denoised[:, :, :1], first.expand(2, -1, -1, -1, -1))


def test_frames_are_imposed_at_both_ends_and_marked_in_the_mask() -> None:
    first, last = normal(1, 4, 2, 2, 2, seed=5), normal(1, 4, 1, 2, 2, seed=6)
    condition = VisualCondition(first_frame=first, last_frame=last)
    x = normal(2, 4, 5, 2, 2, seed=7)
    imposed = condition.impose(x)
    assert torch.equal(imposed[:, :, :2], first.expand(2, -1, -1, -1, -1))
    assert torch.equal(imposed[:, :, 2:4], x[:, :, 2:4])
    assert torch.equal(imposed[:, :, 4:], last.expand(2, -1, -1, -1, -1))
    noisy, empty, mask = condition.network_input(imposed, True).split([4, 4, 1], dim=1)
    assert torch.equal(noisy, imposed)
    assert not empty.any()
    assert mask[0, 0, :, 0, 0].tolist() == [1, 1, 0, 0, 1]


def test_nothing_left_to_make_is_refused() -> None:
    condition = VisualCondition(normal(1, 4, 2, 2, 2), last_frame=normal(1, 4, 1, 2, 2))
    with pytest.raises(ValueError, match="3 latent frames are given and the clip has 3"):
        condition.impose(normal(1, 4, 3, 2, 2))
    with pytest.raises(ValueError, match="no input for an image"):
        condition.network_input(normal(1, 4, 4, 2, 2), False)


def test_stopping_early_calls_the_network_no_more() -> None:
    calls = []
    steps = sample(lambda x, t: calls.append(t) or x, normal(1, 1, 1, 2, 2), timesteps(9, 5.0))
    next(steps)
    next(steps)
    steps.close()
    assert len(calls) == 2


@pytest.mark.parametrize(
    "times", [[1.0], [1.0, 1.0], [0.0, 1.0], [1.5, 0.0], [1.0, -0.5], [1.0, math.nan]]
)
def test_bad_times_are_refused(times: list[float]) -> None:
    with pytest.raises(ValueError, match="falling numbers"):
        next(sample(lambda x, _t: x, normal(1, 1, 1, 2, 2), torch.tensor(times)))


def test_network_input_of_each_kind() -> None:
    x = normal(2, 4, 3, 2, 2)
    first, source = normal(1, 4, 1, 2, 2, seed=1), normal(1, 4, 3, 2, 2, seed=2)

    plain = VisualCondition().network_input(x, visual_cond=True)
    assert plain.shape == (2, 9, 3, 2, 2)
    assert torch.equal(plain[:, :4], x)
    assert not plain[:, 4:].any()

    video = VisualCondition(first_frame=first).network_input(x, visual_cond=True)
    assert not video[:, 4:8].any()
    assert (video[:, 8, 0] == 1).all()
    assert not video[:, 8, 1:].any()

    edit = VisualCondition(source=source).network_input(x, visual_cond=True)
    assert torch.equal(edit[:, 4:8], source.expand(2, -1, -1, -1, -1))
    assert (edit[:, 8] == 1).all()

    assert VisualCondition().network_input(x, visual_cond=False) is x
    with pytest.raises(ValueError, match="has no input for an image"):
        VisualCondition(source=source).network_input(x, visual_cond=False)


def test_normalisation_moves_each_start_frame_within_the_limits() -> None:
    clip = normal(2, 4, 9, 6, 6).double()
    shift = torch.tensor([3.0, 0.02, -3.0, 0.0, 0, 0, 0, 0, 0]).double()
    spread = torch.tensor([3.0, 1.0, 0.2, 1.0, 1, 1, 1, 1, 1]).double()
    clip = clip * spread[:, None, None] + shift[:, None, None]
    result = normalize_first_frames(clip)

    assert torch.equal(result[:, :, 4:], clip[:, :, 4:])
    for sample_in, sample_out in zip(clip, result, strict=True):
        reference = sample_in[:, 4:9]
        for frame in range(4):
            before, after = sample_in[:, frame], sample_out[:, frame]
            mean, std = before.mean().item(), before.std().item()
            want_mean = min(max(reference.mean().item(), mean - 0.05), mean + 0.1)
            want_std = min(max(reference.std().item(), std - 0.1), std + 0.25)
            assert after.mean().item() == pytest.approx(want_mean, abs=1e-9)
            assert after.std().item() == pytest.approx(want_std, abs=1e-9)


def test_normalisation_leaves_short_clips_alone() -> None:
    clip = normal(1, 4, 4, 2, 2)
    assert normalize_first_frames(clip) is clip


def test_normalize_first_frames_of_one_value_stay_finite():
    clip = torch.randn(1, 2, 9, 4, 4, generator=torch.Generator().manual_seed(0))
    clip[:, :, 0] = 0.5
    result = normalize_first_frames(clip)
    assert result.isfinite().all()
    assert result[:, :, 0].std() < 1e-3


def test_noise_depends_on_the_seed_alone() -> None:
    shape = (1, 4, 3, 2, 2)
    torch.manual_seed(5)
    noise = make_noise(shape, 7)
    assert torch.equal(noise, make_noise(shape, 7))
    assert not torch.equal(noise, make_noise(shape, 8))
    assert noise.dtype == torch.float32
