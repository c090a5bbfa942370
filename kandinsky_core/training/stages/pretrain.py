"""Pretrains the nano family: a CrossDiT and its text encoder; run with `python -m`.

What it does: encodes rendered scenes once, then trains text to video, text to image and image to
video in one model. A batch holds clips of one size; a share of a video batch's rows starts from
the given first frame. Images alone come first (shapes and colours are learnt there at a fifth of
the cost), then clips at 128, then all sizes, as the family does with its resolutions.
What it leaves out against arXiv 2511.14993: packing of several sizes into one batch, activation
checkpointing and sharding, which a model of this size does not need.

Stop it with Ctrl-C and start the same command again: it goes on where it was. `--init` starts
from finished weights instead of from nothing.
"""

from __future__ import annotations

import argparse
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ...checkpoint import describe_metadata, load_transformer, load_vae, save_checkpoint
from ...family.config import NanoTextConfig
from ...family.variants import VARIANTS
from ...models import CrossDiT, VideoVAE
from ...text import (
    NanoTextEncoder,
    Task,
    TextConditioning,
    load_nano_text_encoder,
    save_nano_text_encoder,
)
from ...text.nano import NUM_SPECIAL_IDS
from ..alignment import (
    LABEL_WEIGHT,
    LAYOUT_WEIGHT,
    Readers,
    middle_tokens,
    start_as_neighbourhoods,
)
from ..data.latents import Bucket, LatentCache, encode_bucket, load_caches
from ..distributed import Group, launch
from ..loop import Loop, LoopSettings, Objective, step_generator
from ..objectives import flow_loss
from ..optim import Schedule, make_optimizers
from ..precision import compute_dtype
from ..world import vocabulary

IMAGES = Bucket(128, 1)
CLIPS = Bucket(128, 17)
LONG = Bucket(128, 25)
IMAGES_256 = Bucket(256, 1)
CLIPS_256 = Bucket(256, 17)
LONG_256 = Bucket(256, 25)

CACHE: dict[Bucket, int] = {
    IMAGES: 12000,
    CLIPS: 10000,
    LONG: 300,
    IMAGES_256: 400,
    CLIPS_256: 200,
    LONG_256: 100,
}
"""Clips of each size that are encoded."""

BATCH: dict[Bucket, int] = {
    IMAGES: 40,
    CLIPS: 8,
    LONG: 6,
    IMAGES_256: 10,
    CLIPS_256: 2,
    LONG_256: 1,
}
"""Clips of each size in one process's share of a batch: about equal numbers of tokens."""

CAPTIONS = 64
"""Captions in one process's share of a step that only the text encoder sees."""


class Phase(NamedTuple):
    """A stretch of training with one mixture of sizes."""

    until: float
    """Where it ends, as a share of all steps."""
    shares: Mapping[Bucket, float]
    """Probability of each size; batches cost about the same."""


PHASES: tuple[Phase, ...] = (
    Phase(0.1, {IMAGES: 1.0}),
    Phase(0.85, {CLIPS: 0.78, IMAGES: 0.22}),
    Phase(
        1.0,
        {CLIPS: 0.64, IMAGES: 0.12, LONG: 0.08, IMAGES_256: 0.04, CLIPS_256: 0.08, LONG_256: 0.04},
    ),
)


class NanoModel(nn.Module):
    """What is trained: the transformer and the text encoder."""

    def __init__(self, transformer: CrossDiT, text_encoder: NanoTextEncoder) -> None:
        super().__init__()
        self.transformer = transformer
        self.text_encoder = text_encoder

    @classmethod
    def fresh(cls) -> NanoModel:
        """Return random weights, from torch's seed."""
        words = vocabulary()
        config = NanoTextConfig(vocab_size=NUM_SPECIAL_IDS + len(words))
        transformer = CrossDiT(VARIANTS["nano"])
        start_as_neighbourhoods(transformer)
        return cls(transformer, NanoTextEncoder(config, words))

    @classmethod
    def load(cls, folder: Path) -> NanoModel:
        """Read what `save` wrote, in fp32, to be trained further."""
        transformer, _ = load_transformer(folder / "transformer.safetensors", dtype=torch.float32)
        text_path = folder / "text_encoder.safetensors"
        model = cls(transformer, load_nano_text_encoder(text_path, dtype=torch.float32))
        return model.requires_grad_(True)  # what is loaded to be used is frozen

    def save(
        self,
        folder: Path,
        *,
        dtype: torch.dtype = torch.float16,
        task: Task = "t2v",
    ) -> None:
        """Write the two files of the family; `task` is what they are first of all for."""
        folder.mkdir(parents=True, exist_ok=True)
        weights = {name: value.to(dtype) for name, value in self.transformer.state_dict().items()}
        metadata = describe_metadata(
            self.transformer.config, variant="nano", task=task, stage="pretrain"
        )
        save_checkpoint(folder / "transformer.safetensors", weights, metadata)
        save_nano_text_encoder(folder / "text_encoder.safetensors", self.text_encoder.to(dtype))

    def encode_text(self, prompts: Sequence[str]) -> TextConditioning:
        """Encode prompts with gradients."""
        ids, mask = self.text_encoder.tokenizer(prompts)
        tokens, pooled = self.text_encoder(ids, mask)
        return TextConditioning(tokens, mask, pooled)


def choose_bucket(phases: Sequence[Phase], progress: float, generator: torch.Generator) -> Bucket:
    """Draw the size of a step's batch; `progress` in [0, 1) is the share of steps done."""
    phase = next(phase for phase in phases if progress < phase.until)
    weights = torch.tensor(list(phase.shares.values()))
    return list(phase.shares)[int(torch.multinomial(weights, 1, generator=generator))]


def make_objective(
    model: NanoModel,
    readers: Readers,
    caches: Mapping[Bucket, LatentCache],
    num_steps: int,
    seed: int,
    rank: int = 0,
    *,
    batch: Mapping[Bucket, int] = BATCH,
    phases: Sequence[Phase] = PHASES,
    dtype: torch.dtype = torch.float32,
) -> Objective:
    """Return the objective of `Loop`: a size for all processes, then each process's own rows."""

    talkative = max(caches, key=lambda bucket: (not bucket.is_image, len(caches[bucket].captions)))

    def objective(step: int) -> Mapping[str, Tensor]:
        # the seed without a rank is the same everywhere: equal sizes keep the processes in pace
        bucket = choose_bucket(phases, step / num_steps, step_generator(seed + 1, step))
        generator = step_generator(seed, step, rank)
        drawn = caches[bucket].draw(batch[bucket], generator)
        text = model.encode_text(drawn.prompts)
        with middle_tokens(model.transformer) as seen:
            flow = flow_loss(model.transformer, text, drawn, generator, dtype=dtype)
        patch = model.transformer.config.patch_thw
        grid_hw = (drawn.latents.shape[3] // patch[1], drawn.latents.shape[4] // patch[2])
        layout = readers.layout_loss(seen[0].float(), drawn.layout, grid_hw)
        # text is cheap beside latents, and motions have many names: it gets captions of its own
        prompts, asked = caches[talkative].draw_captions(CAPTIONS, generator)
        labels = readers.label_loss(model.encode_text(prompts).pooled, asked)
        helping = 1 - step / num_steps
        return {
            "loss": flow + helping * (LAYOUT_WEIGHT * layout + LABEL_WEIGHT * labels),
            f"flow_{bucket.name}": flow.detach(),
            f"layout_{bucket.name}": layout.detach(),
            "labels": labels.detach(),
        }

    return objective


def export(loop: Loop, folder: Path) -> None:
    """Write the averaged weights as a model that `load_pipeline` and `--init` take."""
    model = NanoModel.fresh()
    model.load_state_dict(loop.ema_state("nano."))
    model.save(folder)


def train(group: Group, args: argparse.Namespace) -> None:
    """Encode what is missing from the cache, then train, in one process of a group."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    vae = load_vae(args.vae, dtype=torch.float32)
    assert isinstance(vae, VideoVAE)
    vae.requires_grad_(False)
    cache = args.run / "latents"
    for bucket, count in CACHE.items():
        encode_bucket(vae, bucket, count, cache, seed=args.seed, group=group)
    group.barrier()
    caches = load_caches(cache, tuple(CACHE), vae.config)

    torch.manual_seed(args.seed)
    model = NanoModel.load(args.init) if args.init else NanoModel.fresh()
    config = model.transformer.config
    trained = nn.ModuleDict(
        {"nano": model, "readers": Readers(config.model_dim, config.pooled_dim)}
    )
    settings = LoopSettings(
        Schedule(args.steps, warmup=60, decay=int(args.steps * 0.6)),
        ema_decay=0.998,
        save_every=200,
        log_every=25,
    )
    dtype = compute_dtype()
    objective = make_objective(
        model, trained["readers"], caches, args.steps, args.seed, group.rank, dtype=dtype
    )
    Loop(
        trained,
        objective,
        make_optimizers(trained, args.lr, outer_lr=args.lr / 5, group=group, dtype=dtype),
        settings,
        args.run,
        group=group,
        on_save=lambda loop: export(loop, args.run / "model"),
    ).run()


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line of this stage."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--run", type=Path, default=Path("runs/nano"), help="run directory")
    parser.add_argument("--vae", type=Path, default=Path("runs/vae/vae.safetensors"))
    parser.add_argument("--init", type=Path, help="folder of finished weights to start from")
    parser.add_argument("--steps", type=int, default=9800)
    parser.add_argument("--lr", type=float, default=5e-3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--processes", type=int, default=2)
    args = parser.parse_args(arguments)
    launch(train, args.processes, args, threads=1)


if __name__ == "__main__":
    main()
