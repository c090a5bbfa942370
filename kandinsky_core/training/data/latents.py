"""Latents of rendered scenes, encoded once and read many times.

A cache is a folder of shards, each a safetensors file that holds the latents of some scenes of one
size and, as JSON in its metadata, several captions for each. A shard is a function of the seed and
of its number, so a stopped encoding goes on where it was, in any number of processes.

Latents are stored in VAE space, fp16. Letters: N clips, C channels, T H W latent grid.
"""

from __future__ import annotations

import json
import logging
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from ...family.config import VideoVAEConfig
from ...family.settings import DEFAULT_RELEASES, RELEASES
from ...files import atomic_write
from ...models import VideoVAE
from ...models.vae.latent_space import to_model_space
from ...video import to_pixels
from ..distributed import Group
from ..layout import LABELS, scene_labels, scene_layout
from ..precision import compute_dtype
from ..world import LANGUAGES, Scene, caption, is_held_out, render, sample_scene
from .batch import LatentBatch

logger = logging.getLogger(__name__)

CAPTIONS_PER_LANGUAGE = 4
OBJECT_COUNT_SHARES = (0.87, 0.1, 0.03)
"""Shares of scenes with one, two and three objects."""
CAMERA_SHARE = 0.08
"""Share of scenes in which the camera moves."""
TEXT_DROPOUT = 0.1
MAX_SHARD, MIN_SHARDS = 100, 8
"""Clips in a shard at most, and shards of a bucket at least, so that processes share evenly."""
FIRST_FRAME_SHARE = 0.25
"""Share of a video batch's rows that are image to video."""

EMPHASIS: dict[tuple[str, str], float] = {
    ("shape", "star"): 2.0,
    ("shape", "square"): 1.3,
    ("motion", "rotate"): 2.0,
    ("motion", "orbit"): 1.5,
    ("motion", "diagonal"): 1.5,
}
"""What is hard to learn is drawn more often, by these factors."""


class Bucket(NamedTuple):
    """Clips of one size."""

    size: int
    """Height and width, pixels."""
    num_frames: int
    """Frames; 1 for images."""

    @property
    def name(self) -> str:
        return f"{self.size}x{self.num_frames}"

    @property
    def is_image(self) -> bool:
        return self.num_frames == 1

    @property
    def rope_scale(self) -> tuple[float, float, float]:
        """What the nano family's settings say for this size."""
        settings = RELEASES[DEFAULT_RELEASES["nano"]]
        return settings.rope_scale_for(self.size, self.size)


def sample_training_scene(rng: np.random.Generator) -> Scene:
    """Draw a scene that is not held out."""
    while True:
        num_objects = 1 + int(rng.choice(3, p=OBJECT_COUNT_SHARES))
        scene = sample_scene(rng, num_objects=num_objects, camera_share=CAMERA_SHARE)
        if not is_held_out(scene):
            return scene


def describe(scene: Scene, rng: np.random.Generator, *, image: bool) -> list[str]:
    """Write several captions of a scene in every language."""
    return [
        caption(scene, rng, language, image)
        for language in LANGUAGES
        for _ in range(CAPTIONS_PER_LANGUAGE)
    ]


@torch.no_grad()
def encode_shard(
    vae: VideoVAE,
    bucket: Bucket,
    count: int,
    seed: int,
    index: int,
    folder: Path,
    change: Callable[[Scene], Scene] | None = None,
) -> None:
    """Render, describe and encode the scenes of one shard, and write it.

    Args:
        vae: The encoder, frozen.
        bucket: Size of the clips.
        count: Clips in the shard.
        seed: Of the whole cache.
        index: Number of the shard.
        folder: Where the file goes; existing shards are kept.
        change: What is done to a scene after it was described, so that captions know nothing of it.
    """
    path = shard_path(folder, bucket, index)
    if path.exists():
        return
    rng = np.random.default_rng([seed, zlib.crc32(bucket.name.encode()), index])
    scenes = [sample_training_scene(rng) for _ in range(count)]
    captions = [describe(scene, rng, image=bucket.is_image) for scene in scenes]
    if change is not None:
        scenes = [change(scene) for scene in scenes]
    latents, first_frames = [], []
    dtype = compute_dtype()  # bf16 moves a latent by 1 % of its deviation
    for scene in scenes:
        pixels = to_pixels(render(scene, bucket.size, bucket.num_frames))  # (1, 3, F, H, W)
        with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
            latents.append(vae.encode(pixels))
            if not bucket.is_image:
                first_frames.append(vae.encode(pixels[:, :, :1]))
    length = latents[0].shape[2]
    layouts = [scene_layout(scene, bucket.num_frames, length) for scene in scenes]
    labels = [scene_labels(scene, image=bucket.is_image) for scene in scenes]
    tensors = {
        "latents": torch.cat(latents).half(),
        "layouts": torch.stack(layouts).half(),
        "labels": torch.stack(labels).half(),
    }
    if first_frames:
        tensors["first_frames"] = torch.cat(first_frames).half()
    with atomic_write(path) as part:
        save_file(tensors, part, metadata={"captions": json.dumps(captions, ensure_ascii=False)})


EncodeShard = Callable[[VideoVAE, Bucket, int, int, int, Path], None]
"""(encoder, size, clips, seed, number of the shard, folder): see `encode_shard`."""


def encode_bucket(
    vae: VideoVAE,
    bucket: Bucket,
    count: int,
    folder: Path,
    *,
    seed: int,
    group: Group,
    encode: EncodeShard = encode_shard,
) -> None:
    """Encode about `count` clips, the shards divided among the processes of the group."""
    folder.mkdir(parents=True, exist_ok=True)
    shard_size = min(MAX_SHARD, -(-count // MIN_SHARDS))
    num_shards = -(-count // shard_size)
    for index in range(group.rank, num_shards, group.size):
        encode(vae, bucket, shard_size, seed, index, folder)
    if group.is_main:
        logger.info("encoded %d clips of %s", num_shards * shard_size, bucket.name)


@dataclass
class LatentCache:
    """The clips of one bucket, in memory."""

    bucket: Bucket
    vae_config: VideoVAEConfig
    latents: Tensor = field(repr=False)
    """(N, C, T, H, W) fp16, VAE space."""
    first_frames: Tensor = field(repr=False)
    """(N, C, 1, H, W) fp16, VAE space."""
    captions: list[list[str]] = field(repr=False)
    """Of each clip, several."""
    layouts: Tensor = field(repr=False)
    """(N, T, O, E) fp16."""
    labels: Tensor = field(repr=False)
    """(N, len(LABELS)) fp16."""

    def __post_init__(self) -> None:
        factors = torch.tensor([EMPHASIS.get(label, 1.0) for label in LABELS])
        self.shares = torch.exp(self.labels.float() @ factors.log())
        """(N,): how often each clip is drawn, relative to the others."""

    @classmethod
    def load(cls, folder: Path, bucket: Bucket, vae_config: VideoVAEConfig) -> LatentCache:
        """Read all shards of a bucket.

        Raises:
            ValueError: if there are none, or an older version of this package wrote them.
        """
        names = ("latents", "layouts", "labels") + (() if bucket.is_image else ("first_frames",))
        parts: dict[str, list[Tensor]] = {name: [] for name in names}
        captions = []
        for path in shard_paths(folder, bucket):
            with safe_open(path, framework="pt") as file:
                if lacking := set(names) - set(file.keys()):
                    raise ValueError(
                        f"{path} lacks {', '.join(sorted(lacking))}: it was encoded by an older "
                        f"version; delete {folder} to have it encoded again"
                    )
                for name in names:
                    parts[name].append(file.get_tensor(name))
                captions += json.loads(file.metadata()["captions"])
        if not captions:
            raise ValueError(f"{folder} holds no latents of {bucket.name}; encode them first")
        joined = {name: torch.cat(tensors) for name, tensors in parts.items()}
        return cls(
            bucket,
            vae_config,
            joined["latents"],
            joined.get("first_frames", joined["latents"]),
            captions,
            joined["layouts"],
            joined["labels"],
        )

    def draw(self, count: int, generator: torch.Generator) -> LatentBatch:
        """Draw a batch: clips, a caption of each or the null prompt, and image-to-video rows."""
        rows = torch.multinomial(self.shares, count, replacement=True, generator=generator)
        chosen = torch.rand(3, count, generator=generator)
        prompts = [
            "" if drop < TEXT_DROPOUT else self.captions[row][int(which * len(self.captions[row]))]
            for row, which, drop in zip(
                rows.tolist(), chosen[0].tolist(), chosen[1].tolist(), strict=True
            )
        ]
        share = 0.0 if self.bucket.is_image else FIRST_FRAME_SHARE
        return LatentBatch(
            to_model_space(self.latents[rows].float(), self.vae_config),
            to_model_space(self.first_frames[rows].float(), self.vae_config),
            chosen[2] < share,
            prompts,
            self.layouts[rows].float(),
            self.bucket.rope_scale,
        )

    def draw_captions(self, count: int, generator: torch.Generator) -> tuple[list[str], Tensor]:
        """Draw captions alone, with the labels (count, len(LABELS)) of their scenes."""
        rows = torch.randint(len(self.captions), (count,), generator=generator)
        chosen = torch.rand(count, generator=generator)
        prompts = [
            self.captions[row][int(which * len(self.captions[row]))]
            for row, which in zip(rows.tolist(), chosen.tolist(), strict=True)
        ]
        return prompts, self.labels[rows].float()


def load_caches(
    folder: Path, buckets: Sequence[Bucket], vae_config: VideoVAEConfig
) -> dict[Bucket, LatentCache]:
    """Read several buckets."""
    return {bucket: LatentCache.load(folder, bucket, vae_config) for bucket in buckets}


def shard_path(folder: Path, bucket: Bucket, index: int) -> Path:
    """Return the file of one shard."""
    return folder / f"{bucket.name}-{index:04d}.safetensors"


def shard_paths(folder: Path, bucket: Bucket) -> Iterator[Path]:
    """Yield the files of all shards of a bucket, in order."""
    yield from sorted(folder.glob(f"{bucket.name}-*.safetensors"))
