"""Teaches the nano family to edit pictures, beside all that it can; run with `python -m`.

    python -m kandinsky_core.training.edit --init kandinsky_core/nano --run runs/nano_edit
    python -m kandinsky_core.training.evaluate --model runs/nano_edit/model

What it does: goes on from finished weights with a mixture. Nearly half of the steps are edits
(recolour, replace the shape, remove, move, change the background): the network sees the noisy
target, the source and a mask of ones, as `flow/condition.py` gives them to an edit model, and an
instruction. The other steps are those of pretraining, so that one file does all tasks and the
bundled weights do not grow. The text encoder gets the words of the instructions after those that it
knows, whose ids stay. No picture of the mixture shows a held-out combination.
What it leaves out against the family's edit model: the text encoder does not see the source, as
nano's has no eyes; what is meant by "it" the transformer must find in the picture.

Expected on two free cores with bf16 units, from the pace of pretraining: 5 minutes to encode the
pairs (10 more where the latents of pretraining are not there), then 50 minutes for 3000 steps. Stop
it with Ctrl-C and start the same command again: it goes on where it was.
"""

from __future__ import annotations

import argparse
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple, Protocol, get_args

import torch
from torch import Tensor

from ..checkpoint import load_vae
from ..distributed import Group, launch
from ..models import VideoVAE
from ..text import NanoTextEncoder, Task
from .data import Bucket, LatentCache, encode_bucket
from .edit_data import EditCache, encode_edit_shard
from .loop import Loop, LoopSettings, Objective, step_generator
from .objectives import LatentBatch, flow_loss
from .optim import Schedule, make_optimizers
from .precision import compute_dtype
from .pretrain import (
    BATCH,
    CACHE,
    CLIPS,
    CLIPS_256,
    IMAGES,
    IMAGES_256,
    LONG,
    LONG_256,
    NanoModel,
)
from .world import edit_vocabulary

EDITS: dict[Bucket, int] = {IMAGES: 16000, IMAGES_256: 800}
"""Pairs of each size that are encoded."""


class Part(NamedTuple):
    """A part of the mixture: edits or what pretraining does, at one size."""

    is_edit: bool
    bucket: Bucket

    @property
    def name(self) -> str:
        return f"edit_{self.bucket.name}" if self.is_edit else self.bucket.name


MIXTURE: dict[Part, float] = {
    Part(True, IMAGES): 0.42,
    Part(True, IMAGES_256): 0.05,
    Part(False, CLIPS): 0.33,
    Part(False, IMAGES): 0.10,
    Part(False, LONG): 0.03,
    Part(False, IMAGES_256): 0.02,
    Part(False, CLIPS_256): 0.03,
    Part(False, LONG_256): 0.02,
}
"""Probability of each part; batches cost about the same."""


class DrawsBatches(Protocol):
    """A cache of either kind."""

    def draw(self, count: int, generator: torch.Generator) -> LatentBatch:
        """Draws `count` rows."""
        ...


def with_words(encoder: NanoTextEncoder, words: Sequence[str]) -> NanoTextEncoder:
    """Makes a text encoder that knows more words; what it knew it reads as before.

    Args:
        encoder: With its learnt weights.
        words: Those it knows already are left out; the others get fresh vectors, from torch's seed.
    """
    known = encoder.tokenizer.vocabulary
    new = [word for word in words if word not in set(known)]
    config = replace(encoder.config, vocab_size=encoder.config.vocab_size + len(new))
    grown = NanoTextEncoder(config, (*known, *new))
    state = encoder.state_dict()
    learnt = state["word_embeddings.weight"]
    fresh = grown.word_embeddings.weight.detach()[len(learnt) :]
    grown.load_state_dict(state | {"word_embeddings.weight": torch.cat([learnt, fresh])})
    return grown


def load_to_edit(folder: Path) -> NanoModel:
    """Reads finished weights and adds the words of instructions."""
    model = NanoModel.load(folder)
    model.text_encoder = with_words(model.text_encoder, edit_vocabulary())
    return model


def make_objective(
    model: NanoModel,
    caches: Mapping[Part, DrawsBatches],
    seed: int,
    rank: int = 0,
    *,
    batch: Mapping[Bucket, int] = BATCH,
    dtype: torch.dtype = torch.float32,
) -> Objective:
    """The objective of `Loop`: a part of the mixture for all processes, then each one's rows.

    Args:
        model: What is trained.
        caches: A cache for each part that is drawn; shares are `MIXTURE`'s.
        seed: Of everything random.
        rank: Of this process.
        batch: Rows of each size.
        dtype: In which the large matrices compute.
    """
    parts = list(caches)
    shares = torch.tensor([MIXTURE.get(part, 1.0) for part in parts])

    def objective(step: int) -> Mapping[str, Tensor]:
        # the seed without a rank is the same everywhere: equal sizes keep the processes in pace
        index = torch.multinomial(shares, 1, generator=step_generator(seed + 1, step))
        part = parts[int(index)]
        generator = step_generator(seed, step, rank)
        drawn = caches[part].draw(batch[part.bucket], generator)
        text = model.encode_text(drawn.prompts)
        loss = flow_loss(model.transformer, text, drawn, generator, dtype=dtype)
        return {"loss": loss, f"flow_{part.name}": loss.detach()}

    return objective


def export(loop: Loop, make_model: Callable[[], NanoModel], folder: Path) -> None:
    """Writes the averaged weights as a model for all tasks."""
    model = make_model()
    model.load_state_dict(loop.ema_state())
    model.save(folder, tasks=get_args(Task))


def train(group: Group, args: argparse.Namespace) -> None:
    """Encodes what is missing from the caches, then trains, in one process of a group."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    vae = load_vae(args.vae or args.init / "vae.safetensors", dtype=torch.float32)
    assert isinstance(vae, VideoVAE)
    vae.requires_grad_(False)
    pairs = args.run / "edits"
    for bucket, count in EDITS.items():
        encode_bucket(
            vae, bucket, count, pairs, seed=args.seed, group=group, encode=encode_edit_shard
        )
    for bucket, count in CACHE.items():
        encode_bucket(vae, bucket, count, args.latents, seed=args.seed, group=group)
    group.barrier()
    caches: dict[Part, DrawsBatches] = {
        part: EditCache.load(pairs, part.bucket, vae.config)
        if part.is_edit
        else LatentCache.load(args.latents, part.bucket, vae.config)
        for part in MIXTURE
    }

    torch.manual_seed(args.seed)
    model = load_to_edit(args.init)
    settings = LoopSettings(
        Schedule(args.steps, warmup=100, decay=int(args.steps * 0.7)),
        ema_decay=0.998,
        save_every=200,
        log_every=25,
    )
    dtype = compute_dtype()
    Loop(
        model,
        make_objective(model, caches, args.seed, group.rank, dtype=dtype),
        make_optimizers(model, args.lr, outer_lr=args.lr / 5, group=group, dtype=dtype),
        settings,
        args.run,
        group=group,
        on_save=lambda loop: export(loop, lambda: load_to_edit(args.init), args.run / "model"),
    ).run()


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line of this stage."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--run", type=Path, default=Path("runs/nano_edit"), help="run directory")
    parser.add_argument(
        "--init", type=Path, default=Path("kandinsky_core/nano"), help="folder of finished weights"
    )
    parser.add_argument("--vae", type=Path, help="weights; default: those in --init")
    parser.add_argument(
        "--latents", type=Path, default=Path("runs/nano/latents"), help="those of pretraining"
    )
    parser.add_argument("--steps", type=int, default=3000)
    parser.add_argument("--lr", type=float, default=2.5e-3)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--processes", type=int, default=2)
    args = parser.parse_args(arguments)
    launch(train, args.processes, args, threads=1)


if __name__ == "__main__":
    main()
