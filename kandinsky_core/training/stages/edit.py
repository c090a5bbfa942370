"""Teaches the nano family to edit pictures; run with `python -m`.

    python -m kandinsky_core.training.stages.edit --run runs/nano_edit
    python -m kandinsky_core.training.studies.evaluate --model runs/nano_edit/model

What it does: from the finished transformer it makes one of its own that only edits (recolour,
replace the shape, remove, move, change the background), as in the large family. The network sees
the noisy target, the source and a mask of ones, as `flow/condition.py` gives them to an edit model,
and an instruction. The text encoder stays one for all tasks: it gets the words of the instructions
after those that it knows, and what it knew it reads as before. No pair shows a held-out
combination. For the last third of the steps the network computes with what the bundled file can
hold of its weights, four bits of their difference from the first ones (`nano/edit.py`), so that it
learns to do with that.
What it leaves out against the family's edit model: the text encoder does not see the source, as
nano's has no eyes; what is meant by "it" the transformer must find in the picture.

Expected on two free cores with bf16 units: 5 minutes to encode the pairs and 35 for the steps. Stop
it with Ctrl-C and start the same command again: it goes on where it was.
"""

from __future__ import annotations

import argparse
import copy
import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from ...checkpoint import load_vae
from ...models import VideoVAE
from ...nano import EDIT_DIFFERENCE, merge_edit, pack, unpack, write_difference
from ...text import NanoTextEncoder, TextConditioning
from ..data.edits import EditCache, encode_edit_shard
from ..data.latents import Bucket, encode_bucket
from ..distributed import Group, launch
from ..loop import Loop, LoopSettings, Objective, step_generator
from ..objectives import flow_loss
from ..optim import Schedule, make_optimizers
from ..precision import compute_dtype
from ..world import edit_vocabulary
from .pretrain import BATCH, IMAGES, IMAGES_256, NanoModel

EDITS: dict[Bucket, int] = {IMAGES: 16000, IMAGES_256: 800}
"""Pairs of each size that are encoded."""
SHARES: dict[Bucket, float] = {IMAGES: 0.9, IMAGES_256: 0.1}
"""Probability of each size; batches cost about the same."""


def with_words(encoder: NanoTextEncoder, words: Sequence[str]) -> NanoTextEncoder:
    """Make a text encoder that knows more words; what it knew it reads as before.

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


class Editor(nn.Module):
    """What is trained: a transformer, and the vectors of new words."""

    def __init__(self, model: NanoModel) -> None:
        """Prepare finished weights.

        Args:
            model: Its transformer is changed.
        """
        super().__init__()
        self.transformer = model.transformer
        self.before = {
            name: parameter.detach().clone()
            for name, parameter in self.transformer.named_parameters()
            if parameter.ndim >= 2
        }
        # what the first layer made of sources is chance, and of a mask, that the frame is clean
        first = self.transformer.visual_embeddings.in_layer
        forget_condition(first, model.transformer.config.latent_channels)
        num_known = model.text_encoder.config.vocab_size
        self.text_encoder = with_words(model.text_encoder, edit_vocabulary())
        self.text_encoder.requires_grad_(False)
        words = self.text_encoder.word_embeddings.weight.requires_grad_(True)
        words.register_hook(lambda grad: torch.cat([0 * grad[:num_known], grad[num_known:]]))

    def encode_text(self, prompts: Sequence[str]) -> TextConditioning:
        """Encode prompts with gradients."""
        ids, mask = self.text_encoder.tokenizer(prompts)
        tokens, pooled = self.text_encoder(ids, mask)
        return TextConditioning(tokens, mask, pooled)

    def rounded(self, *args: Any, **kwargs: Any) -> Tensor:
        """Call the transformer with what the bundled file can hold of its weights.

        Gradients pass through the rounding as if there were none.
        """
        weights = {}
        for name, parameter in self.transformer.named_parameters():
            if name in self.before:
                change = parameter.detach() - self.before[name]
                held = self.before[name] + unpack(*pack(change), change.shape)
                weights[name] = parameter + (held - parameter.detach())
        return functional_call(self.transformer, weights, args, kwargs)


def forget_condition(layer: nn.Linear, channels: int) -> None:
    """Zero what a first layer makes of the condition's channels, in place.

    Args:
        layer: `visual_embeddings.in_layer` of a transformer with visual_cond.
        channels: C of its latents.
    """
    # the columns of a patch (P) are those of its cells, and those the channels of the input
    weight = layer.weight.detach().unflatten(1, (-1, 2 * channels + 1))  # (D, P, 2C + 1)
    weight[..., channels:] = 0.0


def make_objective(
    editor: Editor,
    caches: Mapping[Bucket, EditCache],
    seed: int,
    rank: int = 0,
    *,
    round_from: int | None = None,
    batch: Mapping[Bucket, int] = BATCH,
    dtype: torch.dtype = torch.float32,
) -> Objective:
    """Return the objective of `Loop`: a size for all processes, then each one's rows.

    Args:
        editor: What is trained.
        caches: Pairs of each size that is drawn; shares are those of `SHARES`.
        seed: Of everything random.
        rank: Of this process.
        round_from: First step that is taken with rounded weights; None rounds none.
        batch: Rows of each size.
        dtype: In which the large matrices compute.
    """
    buckets = list(caches)
    shares = torch.tensor([SHARES.get(bucket, 1.0) for bucket in buckets])

    def objective(step: int) -> Mapping[str, Tensor]:
        # the seed without a rank is the same everywhere: equal sizes keep the processes in pace
        index = torch.multinomial(shares, 1, generator=step_generator(seed + 1, step))
        bucket = buckets[int(index)]
        generator = step_generator(seed, step, rank)
        drawn = caches[bucket].draw(batch[bucket], generator)
        text = editor.encode_text(drawn.prompts)
        is_rounded = round_from is not None and step >= round_from
        network = editor.rounded if is_rounded else editor.transformer
        loss = flow_loss(network, text, drawn, generator, dtype=dtype)
        return {"loss": loss, f"flow_{bucket.name}": loss.detach()}

    return objective


def export(loop: Loop, editor: Editor, base: Path, folder: Path) -> None:
    """Write the averaged weights as they will be bundled: the difference, and what it makes.

    Args:
        loop: Of the editor.
        editor: What is trained.
        base: File of the transformer that it was made from.
        folder: Where the files go.
    """
    averaged = copy.deepcopy(editor)
    averaged.load_state_dict(loop.ema_state())
    NanoModel(averaged.transformer, averaged.text_encoder).save(folder, task="i2i")
    path, difference = folder / "transformer.safetensors", folder / EDIT_DIFFERENCE
    write_difference(base, path, difference)
    merge_edit(base, difference, path)


def train(group: Group, args: argparse.Namespace) -> None:
    """Encode what is missing from the cache, then train, in one process of a group."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    vae = load_vae(args.vae or args.init / "vae.safetensors", dtype=torch.float32)
    assert isinstance(vae, VideoVAE)
    vae.requires_grad_(False)
    pairs = args.run / "edits"
    for bucket, count in EDITS.items():
        encode_bucket(
            vae, bucket, count, pairs, seed=args.seed, group=group, encode=encode_edit_shard
        )
    group.barrier()
    caches = {bucket: EditCache.load(pairs, bucket, vae.config) for bucket in EDITS}

    torch.manual_seed(args.seed)
    model = NanoModel.load(args.init)
    editor = Editor(model)
    dtype = compute_dtype()
    Loop(
        editor,
        make_objective(
            editor,
            caches,
            args.seed,
            group.rank,
            round_from=args.steps * 2 // 3,
            dtype=dtype,
        ),
        make_optimizers(editor, args.lr, outer_lr=args.lr / 4, group=group, dtype=dtype),
        LoopSettings(
            Schedule(args.steps, warmup=100, decay=int(args.steps * 0.6)),
            ema_decay=0.998,
            save_every=200,
            log_every=25,
        ),
        args.run,
        group=group,
        on_save=lambda loop: export(
            loop, editor, args.init / "transformer.safetensors", args.run / "model"
        ),
    ).run()


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line of this stage."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--run", type=Path, default=Path("runs/nano_edit"), help="run directory")
    parser.add_argument(
        "--init", type=Path, default=Path("kandinsky_core/nano"), help="folder of finished weights"
    )
    parser.add_argument("--vae", type=Path, help="weights; default: those in --init")
    parser.add_argument("--steps", type=int, default=2400)
    parser.add_argument("--lr", type=float, default=4e-3)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--processes", type=int, default=2)
    args = parser.parse_args(arguments)
    launch(train, args.processes, args, threads=1)


if __name__ == "__main__":
    main()
