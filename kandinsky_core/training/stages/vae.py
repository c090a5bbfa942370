"""Trains the nano family's video autoencoder on the synthetic world; run with `python -m`.

What it does: single frames first (shapes are learnt there at a ninth of the cost), then small crops
around the objects (that is where the detail is), whole frames now and then (the group norms see
whole frames later), single frames too, because the first latent frame stands for one; stars more
often than other shapes, their points being what eight-fold compression loses first. Loss: absolute
and squared error, the same of the edges, a little KL, and the distance of the latents' covariance
from the identity. Without that last one five directions of sixteen carried everything, one of them
(how bright the background is) with seven tenths of the variance: such latents lose the points of
stars and teach a diffusion model little else than brightness. At the end the latents' mean and
deviation go into the configuration.
What it leaves out: adversarial and perceptual losses; the world has no texture to hallucinate.
"""

from __future__ import annotations

import argparse
import dataclasses
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from einops import rearrange
from torch import Tensor

from ...checkpoint import describe_metadata, load_vae, save_checkpoint
from ...family.config import VideoVAEConfig
from ...family.variants import NANO_VIDEO_VAE
from ...models import VideoVAE
from ..distributed import Group, launch
from ..loop import Loop, LoopSettings, Objective, step_generator
from ..optim import Schedule, make_optimizers
from ..precision import compute_dtype
from ..world import Scene, is_held_out, render, sample_scene
from ..world.scene import frame_times, poses, views
from .vae_balance import change_basis, find_basis

KL_WEIGHT = 1e-5
COVARIANCE_WEIGHT = 3e-3
FIRST_LOGVAR = -5.0
"""Of the posterior at the start: with a deviation near 1, most channels die before they carry
anything."""
EDGE_WEIGHT = 0.5
SHAPE_SHARES = {"star": 0.4, "triangle": 0.25, "square": 0.2, "circle": 0.15}
OBJECT_COUNT_SHARES = (0.6, 0.25, 0.15)
HARD_SHAPE_SHARES = {"star": 0.55, "triangle": 0.2, "square": 0.15, "circle": 0.1}
SMALL_SHARE, ORBIT_SHARE = 0.6, 0.25
"""Of the scenes of the decoder's own stage: what the oracle misses are small stars and orbits."""


class CropKind(NamedTuple):
    """One kind of batch."""

    size: int
    """Side of the rendered frames, pixels."""
    num_frames: int
    """Frames of the rendered clip: how fast things move."""
    length: int
    """Frames that are cut out of it."""
    crop: int
    """Side of the square that is cut out, pixels."""
    batch: int
    """Crops per process."""


FIRST_IMAGES = CropKind(128, 1, 1, 64, 32)
FIRST_SHARE = 0.12
"""Share of the steps that see nothing but `FIRST_IMAGES`."""
CROPS = CropKind(128, 17, 9, 64, 4)
CROPS_256 = CropKind(256, 17, 9, 64, 4)
IMAGES = CropKind(128, 1, 1, 128, 8)
CLIPS = CropKind(128, 17, 9, 128, 1)
LONG = CropKind(128, 17, 17, 128, 1)

CYCLE: tuple[CropKind, ...] = (
    CROPS, CROPS, IMAGES, CROPS, CROPS_256, CROPS, CLIPS, CROPS,
    CROPS, CROPS_256, IMAGES, CROPS, CROPS, CLIPS, CROPS_256, LONG,
)  # fmt: skip
"""Kinds of batches in turn, so that all processes have the same kind at a step."""


def sample_training_scene(rng: np.random.Generator, *, hard: bool = False) -> Scene:
    """Draw a scene of one to three objects, star-heavy, that is not held out.

    Args:
        rng: Source of randomness.
        hard: Whether small stars and orbits are frequent, which the oracle misses first.
    """
    num_objects = 1 + int(rng.choice(3, p=OBJECT_COUNT_SHARES))
    shares = HARD_SHAPE_SHARES if hard else SHAPE_SHARES
    shape = str(rng.choice(list(shares), p=list(shares.values())))
    small = hard and rng.random() < SMALL_SHARE
    motion = "orbit" if hard and rng.random() < ORBIT_SHARE else None
    while True:
        scene = sample_scene(rng, num_objects=num_objects, shape=shape, motion=motion)
        fits = not small or scene.objects[0].size == "small" or scene.objects[0].motion == "shrink"
        if fits and not is_held_out(scene):
            return scene
        shape = None if num_objects > 1 else shape


def cut_around_object(
    frames: np.ndarray, scene: Scene, length: int, crop: int, rng: np.random.Generator
) -> np.ndarray:
    """Cut the same square out of successive frames, near a random object at a random time.

    Args:
        frames: uint8 (F, size, size, 3), a whole clip.
        scene: What it shows.
        length: How many of the frames.
        crop: Side of the square, pixels.
        rng: Chooses frames, object, time and offset.

    Returns:
        uint8 (length, crop, crop, 3).
    """
    num_frames, size = frames.shape[:2]
    first = int(rng.integers(num_frames - length + 1))
    cut = frames[first : first + length]
    if crop == size:
        return cut
    spec = scene.objects[int(rng.integers(len(scene.objects)))]
    times = frame_times(num_frames)
    pose, view = poses(spec, times), views(scene.camera, times)
    at = first + int(rng.integers(length))
    reach = spec.radius * pose.scale[at]  # large objects: look at their edges too
    offset = rng.uniform(-reach, reach, 2)
    x = (pose.x[at] + offset[0] - view.x[at]) * view.zoom[at]
    y = (pose.y[at] + offset[1]) * view.zoom[at]
    left, top = (
        int(np.clip(round((centre + 1) * size / 2 - crop / 2), 0, size - crop)) for centre in (x, y)
    )
    return cut[:, top : top + crop, left : left + crop]


def to_pixels(clips: Sequence[np.ndarray]) -> Tensor:
    """Return uint8 clips (F, H, W, 3) to floats (B, 3, F, H, W) in [-1, 1]."""
    batch = torch.from_numpy(np.stack(clips))
    return rearrange(batch, "b f h w c -> b c f h w").float() / 127.5 - 1.0


def draw_crops(kind: CropKind, rng: np.random.Generator, *, hard: bool = False) -> Tensor:
    """Render a batch of one kind: (B, 3, F, crop, crop) in [-1, 1]."""
    clips = []
    while len(clips) < kind.batch:
        scene = sample_training_scene(rng, hard=hard)
        frames = render(scene, kind.size, kind.num_frames)
        for _ in range(2 if kind.crop < kind.size else 1):
            clips.append(cut_around_object(frames, scene, kind.length, kind.crop, rng))
    # backward of 3-D convolutions is up to three times faster in this layout
    return to_pixels(clips[: kind.batch]).contiguous(memory_format=torch.channels_last_3d)


def reconstruction_loss(reconstruction: Tensor, pixels: Tensor) -> dict[str, Tensor]:
    """Return absolute and squared error of pixels and of edges; both (B, 3, F, H, W)."""
    error = reconstruction - pixels
    l1, mse = error.abs().mean(), error.square().mean()
    edges = error.diff(dim=-1).abs().mean() + error.diff(dim=-2).abs().mean()
    return {"l1": l1, "mse": mse, "edges": edges, "loss": l1 + mse + EDGE_WEIGHT * edges}


def decorrelation_loss(mean: Tensor) -> Tensor:
    """Return squared distance of the channels' covariance from the identity, per channel.

    Args:
        mean: Latents (B, C, T, h, w); the covariance is over all positions of the batch.

    Returns:
        Scalar.
    """
    positions = rearrange(mean, "b c t h w -> (b t h w) c")
    identity = torch.eye(mean.shape[1], dtype=mean.dtype, device=mean.device)
    return (torch.cov(positions.T) - identity).square().sum() / mean.shape[1]


def vae_losses(
    vae: VideoVAE,
    pixels: Tensor,
    generator: torch.Generator,
    *,
    dtype: torch.dtype = torch.float32,
) -> dict[str, Tensor]:
    """Return the losses of a batch of pixels (B, 3, F, H, W) through a sample of the posterior.

    The convolutions compute in `dtype`, the losses in fp32.
    """
    with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
        mean, logvar = (each.float() for each in vae.moments(pixels))
        noise = torch.randn(mean.shape, generator=generator)
        reconstruction = vae.decode(mean + (0.5 * logvar).exp() * noise).float()
    losses = reconstruction_loss(reconstruction, pixels)
    kl = 0.5 * (mean.square() + logvar.exp() - 1.0 - logvar).mean()
    decorrelation = decorrelation_loss(mean)
    loss = losses["loss"] + KL_WEIGHT * kl + COVARIANCE_WEIGHT * decorrelation
    return {**losses, "kl": kl, "decorrelation": decorrelation, "loss": loss}


def make_objective(
    vae: VideoVAE,
    num_steps: int,
    seed: int,
    rank: int = 0,
    *,
    finishing: bool = False,
    dtype: torch.dtype = torch.float32,
) -> Objective:
    """Return the objective of `Loop`: single frames first, then kinds of batches in turn.

    Every other cycle of batches holds hard scenes. When `finishing`, a trained autoencoder gets
    nothing else, and no single frames first.
    """

    def objective(step: int) -> Mapping[str, Tensor]:
        generator = step_generator(seed, step, rank)
        rng = np.random.default_rng(int(torch.randint(2**62, (), generator=generator)))
        first = step < FIRST_SHARE * num_steps and not finishing
        kind = FIRST_IMAGES if first else CYCLE[step % len(CYCLE)]
        hard = finishing or step // len(CYCLE) % 2 == 1
        return vae_losses(vae, draw_crops(kind, rng, hard=hard), generator, dtype=dtype)

    return objective


@torch.no_grad()
def measure_latents(vae: VideoVAE, *, num_clips: int = 48, seed: int = 1) -> VideoVAEConfig:
    """Return the autoencoder's configuration with the shift and scale that make its latents
    standard."""
    rng = np.random.default_rng(seed)
    latents = torch.cat(
        [
            vae.encode(to_pixels([render(sample_training_scene(rng), 128, 17)])).flatten()
            for _ in range(num_clips)
        ]
    )
    std, mean = torch.std_mean(latents)
    return dataclasses.replace(
        vae.config,
        scaling_factor=round(1 / std.item(), 5),
        shift_factor=round(mean.item(), 5),
    )


def export(
    loop: Loop,
    path: Path,
    *,
    config: VideoVAEConfig | None = None,
    dtype: torch.dtype = torch.float16,
) -> None:
    """Write the averaged weights.

    With a `config` the latents stay what they are; without one they get their final basis and
    scale here.
    """
    vae = VideoVAE(NANO_VIDEO_VAE)
    vae.load_state_dict(loop.ema_state())
    if config is None:
        rng = np.random.default_rng(2)
        clips = [to_pixels([render(sample_training_scene(rng), 128, 17)]) for _ in range(24)]
        change_basis(vae, find_basis(vae, clips))
        config = measure_latents(vae)
    weights = {name: value.to(dtype) for name, value in vae.state_dict().items()}
    save_checkpoint(path, weights, describe_metadata(config))


def fresh_vae() -> VideoVAE:
    """Return random weights, from torch's seed, with a narrow posterior."""
    vae, channels = VideoVAE(NANO_VIDEO_VAE), NANO_VIDEO_VAE.latent_channels
    with torch.no_grad():
        vae.quant_conv.weight[channels:].zero_()
        vae.quant_conv.bias[channels:].fill_(FIRST_LOGVAR)
    return vae


def train(group: Group, args: argparse.Namespace) -> None:
    """Train in one process of a group."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    torch.manual_seed(args.seed)
    vae, config = fresh_vae(), None
    if args.init is not None:
        finished = load_vae(args.init, dtype=torch.float32)
        vae.load_state_dict(finished.state_dict())
        config = finished.config if args.decoder_only else None
    vae.to(memory_format=torch.channels_last_3d)
    if args.decoder_only:
        # the latents, and so the transformer that was trained on them, stay valid
        vae.encoder.requires_grad_(False)
        vae.quant_conv.requires_grad_(False)
    settings = LoopSettings(
        Schedule(args.steps, warmup=50, decay=args.steps * 2 // 3, final=0.02),
        ema_decay=0.995,
        save_every=300,
        log_every=48,
    )
    optimizers = make_optimizers(vae, args.lr, weight_decay=0.0, group=group)
    objective = make_objective(
        vae,
        args.steps,
        args.seed,
        group.rank,
        finishing=args.init is not None,
        dtype=compute_dtype(),
    )
    loop = Loop(vae, objective, optimizers, settings, args.run, group=group)
    loop.run()
    if group.is_main:
        export(loop, args.run / "vae.safetensors", config=config)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line of this stage."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--run", type=Path, default=Path("runs/vae"), help="run directory")
    parser.add_argument("--init", type=Path, help="finished weights to start from")
    parser.add_argument("--decoder-only", action="store_true", help="keep the encoder as it is")
    parser.add_argument("--steps", type=int, default=2800)
    parser.add_argument("--lr", type=float, default=2e-3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--processes", type=int, default=2)
    args = parser.parse_args(arguments)
    launch(train, args.processes, args, threads=1)


if __name__ == "__main__":
    main()
