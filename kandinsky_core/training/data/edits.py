"""Pairs of pictures with instructions, encoded once and read many times; shards as in `data`.

Letters: N pairs, C channels, H W latent grid, O objects, E entries of an object.
"""

from __future__ import annotations

import json
import zlib
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from ...family.config import VideoVAEConfig
from ...files import atomic_write
from ...models import VideoVAE
from ...models.vae.latent_space import to_model_space
from ...video import to_pixels
from ..layout import scene_layout
from ..precision import compute_dtype
from ..world import LANGUAGES, instruct, render, sample_training_edit
from .batch import LatentBatch
from .latents import CAPTIONS_PER_LANGUAGE, TEXT_DROPOUT, Bucket, shard_path, shard_paths

_TENSORS = ("sources", "targets", "source_layouts", "target_layouts")


@torch.no_grad()
def encode_edit_shard(
    vae: VideoVAE, bucket: Bucket, count: int, seed: int, index: int, folder: Path
) -> None:
    """Render, describe and encode the pairs of one shard, and write it.

    Args:
        vae: The encoder, frozen.
        bucket: Size of the pictures; one frame.
        count: Pairs in the shard.
        seed: Of the whole cache.
        index: Number of the shard.
        folder: Where the file goes; existing shards are kept.
    """
    path = shard_path(folder, bucket, index)
    if path.exists():
        return
    rng = np.random.default_rng([seed, zlib.crc32(b"edits"), bucket.size, index])
    edits = [sample_training_edit(rng) for _ in range(count)]
    instructions = [
        [
            instruct(edit, rng, language)
            for language in LANGUAGES
            for _ in range(CAPTIONS_PER_LANGUAGE)
        ]
        for edit in edits
    ]
    dtype = compute_dtype()  # bf16 moves a latent by 1 % of its deviation
    tensors: dict[str, Tensor] = {}
    for end in ("source", "target"):
        scenes = [getattr(edit, end) for edit in edits]
        with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
            latents = [vae.encode(to_pixels(render(scene, bucket.size, 1))) for scene in scenes]
        tensors[f"{end}s"] = torch.cat(latents).half()  # (N, C, 1, H, W)
        layouts = [scene_layout(scene, 1, 1) for scene in scenes]
        tensors[f"{end}_layouts"] = torch.stack(layouts).half()  # (N, 1, O, E)
    text = json.dumps(instructions, ensure_ascii=False)
    with atomic_write(path) as part:
        save_file(tensors, part, metadata={"instructions": text})


@dataclass
class EditCache:
    """The pairs of one bucket, in memory."""

    bucket: Bucket
    vae_config: VideoVAEConfig
    sources: Tensor = field(repr=False)
    """(N, C, 1, H, W) fp16, VAE space."""
    targets: Tensor = field(repr=False)
    """(N, C, 1, H, W) fp16, VAE space."""
    source_layouts: Tensor = field(repr=False)
    """(N, 1, O, E) fp16."""
    target_layouts: Tensor = field(repr=False)
    """(N, 1, O, E) fp16."""
    instructions: list[list[str]] = field(repr=False)
    """Of each pair, several."""

    @classmethod
    def load(cls, folder: Path, bucket: Bucket, vae_config: VideoVAEConfig) -> EditCache:
        """Read all shards of a bucket.

        Raises:
            ValueError: If there are none.
        """
        parts: dict[str, list[Tensor]] = {name: [] for name in _TENSORS}
        instructions: list[list[str]] = []
        for path in shard_paths(folder, bucket):
            with safe_open(path, framework="pt") as file:
                for name in _TENSORS:
                    parts[name].append(file.get_tensor(name))
                instructions += json.loads(file.metadata()["instructions"])
        if not instructions:
            raise ValueError(f"{folder} holds no edits of {bucket.name}; encode them first")
        joined = {name: torch.cat(tensors) for name, tensors in parts.items()}
        return cls(bucket, vae_config, **joined, instructions=instructions)

    def draw(self, count: int, generator: torch.Generator) -> LatentBatch:
        """Draw a batch: pairs with an instruction each or, beside the source, the null prompt."""
        rows = torch.randint(len(self.instructions), (count,), generator=generator)
        chosen = torch.rand(2, count, generator=generator)
        prompts = [
            ""
            if drop < TEXT_DROPOUT
            else self.instructions[row][int(which * len(self.instructions[row]))]
            for row, which, drop in zip(rows.tolist(), *chosen.tolist(), strict=True)
        ]
        targets = to_model_space(self.targets[rows].float(), self.vae_config)
        return LatentBatch(
            targets,
            targets,
            torch.zeros(count, dtype=torch.bool),
            prompts,
            self.target_layouts[rows].float(),
            self.bucket.rope_scale,
            sources=to_model_space(self.sources[rows].float(), self.vae_config),
            source_layout=self.source_layouts[rows].float(),
        )
