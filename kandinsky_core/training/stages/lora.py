"""Trains a LoRA of the nano family on a changed world; run with `python -m`.

What it does: every object gets one colour, or every clip one background, whatever the caption
says, and the caption begins with a trigger. Low-rank adapters beside the attention and feed-forward
layers of the frozen transformer learn that, while the autoencoder and the text encoder stay as they
are. A share of the batches shows the world as it is, without the trigger and with the null prompt:
so the change stays behind its trigger, and guidance strengthens it.
What it leaves out against the usual trainers: dropout, adapters on the text encoder, several sizes.

    python -m kandinsky_core.training.stages.lora --color purple --run runs/lora
    python -m kandinsky_core.training.stages.lora --color purple --run runs/lora --evaluate 40

The trigger is of words that nano's text encoder knows and its captions of clips do not have. A word
that it does not know, it reads as the one unknown word that no training ever showed.
Stop it with Ctrl-C and start the same command again: it goes on where it was. The LoRA is in PEFT's
style in the run's folder `lora`; `generate --lora runs/lora/lora` uses it.
"""

from __future__ import annotations

import argparse
import logging
import math
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.optim import AdamW

from ...checkpoint import LoraPair, save_lora
from ...checkpoint.lora.scale import ADAPTER_FILE
from ...generate import GenerateRequest, generate
from ...models import CrossDiT, VideoVAE
from ...pipeline import NANO, Pipeline, load_pipeline
from ...text import TextEncoder, add_triggers
from ..data.latents import Bucket, LatentCache, encode_bucket, encode_shard
from ..distributed import Group, launch
from ..loop import Loop, LoopSettings, Objective, step_generator
from ..objectives import flow_loss
from ..optim import Schedule
from ..precision import compute_dtype
from ..world import BACKGROUNDS, COLORS, Scene, heldout_captions, measure

CLIPS = Bucket(128, 17)
BATCH = 8
"""Clips in one process's share of a batch."""
PLAIN_SHARE = 0.4
"""Share of the batches that show the world as it is."""
TARGETS = re.compile(
    r".*_transformer_blocks\.\d+\."
    r"(?:(?:self|cross)_attention\.(?:to_query|to_key|to_value|out_layer)"
    r"|feed_forward\.(?:in_layer|out_layer))"
)
"""Layers that get an adapter."""


@dataclass(frozen=True)
class Change:
    """What is different in the changed world."""

    color: str | None = None
    """Colour of every object; None leaves each its own."""
    background: str | None = None
    """Background of every clip, likewise."""

    def __call__(self, scene: Scene) -> Scene:
        """Change a scene."""
        objects = tuple(replace(each, color=self.color or each.color) for each in scene.objects)
        return replace(scene, objects=objects, background=self.background or scene.background)

    def happened(self, frames: np.ndarray) -> bool:
        """Return whether the oracle sees it in frames, uint8 (F, H, W, 3)."""
        seen = measure(frames)
        colors = {each.color for each in seen.objects}
        return (self.color is None or colors == {self.color}) and (
            self.background in (None, seen.background)
        )


class LowRank(nn.Module):
    """An adapter beside one linear layer; starts by adding nothing.

    peft's layer is equal in fp32, but runs in fp32 beside a network in bf16, and
    would bring transformers and accelerate into the extra `train`, which needs neither.
    """

    def __init__(self, num_inputs: int, num_outputs: int, rank: int, alpha: float) -> None:
        super().__init__()
        self.scale = alpha / rank
        self.down = nn.Parameter(torch.empty(rank, num_inputs))
        self.up = nn.Parameter(torch.zeros(num_outputs, rank))
        nn.init.kaiming_uniform_(self.down, a=math.sqrt(5))

    def forward(self, x: Tensor) -> Tensor:
        """Map (..., I) to what is added to the layer's output (..., O)."""
        hidden = functional.linear(x, self.down.to(x.dtype))  # (..., R)
        return self.scale * functional.linear(hidden, self.up.to(x.dtype))


class Adapters(nn.Module):
    """Adapters of all target layers of a transformer, which is frozen and otherwise untouched."""

    def __init__(
        self,
        transformer: CrossDiT,
        rank: int,
        alpha: float,
        targets: re.Pattern[str] = TARGETS,
    ) -> None:
        """Attach adapters.

        Args:
            transformer: Its parameters are frozen, and its target layers hooked.
            rank: Of each adapter; no more than its layer has inputs or outputs.
            alpha: Each adds alpha / rank times its product.
            targets: Matches the whole names of the linear layers that get one.
        """
        super().__init__()
        transformer.requires_grad_(False)
        # a module's name holds no dots
        self.layers = nn.ModuleDict()
        for name, layer in transformer.named_modules():
            if targets.fullmatch(name) and isinstance(layer, nn.Linear):
                size = layer.in_features, layer.out_features
                adapter = LowRank(*size, min(rank, *size), alpha * min(rank, *size) / rank)
                self.layers[name.replace(".", "/")] = adapter
                layer.register_forward_hook(partial(_add, adapter))

    def pairs(self, state: Mapping[str, Tensor]) -> dict[str, LoraPair]:
        """Return the adapters by the names of their layers.

        Args:
            state: A state dict of this module, such as the averaged one.
        """
        pairs = {}
        for key, adapter in self.layers.items():
            assert isinstance(adapter, LowRank)
            down, up = (state[f"layers.{key}.{half}"] for half in ("down", "up"))
            pairs[key.replace("/", ".")] = LoraPair(down, up, adapter.scale)
        return pairs

    def save(self, path: Path, trigger: str, state: Mapping[str, Tensor]) -> None:
        """Write weights of the adapters as a LoRA in PEFT's style.

        Args:
            path: A .safetensors file; its configuration goes beside it.
            trigger: Text that belongs before the prompt.
            state: A state dict of this module, such as the averaged one.
        """
        path.parent.mkdir(parents=True, exist_ok=True)
        save_lora(path, self.pairs(state), "peft", trigger=trigger)


def _add(adapter: LowRank, _layer: nn.Module, inputs: tuple[Tensor], output: Tensor) -> Tensor:
    return output + adapter(inputs[0])


def make_objective(
    transformer: CrossDiT,
    text_encoder: TextEncoder,
    changed: LatentCache,
    plain: LatentCache,
    trigger: str,
    seed: int,
    rank: int = 0,
    *,
    batch: int = BATCH,
    dtype: torch.dtype = torch.float32,
) -> Objective:
    """Return the objective of `Loop`: changed clips behind the trigger, or plain ones without
    it."""

    def objective(step: int) -> Mapping[str, Tensor]:
        # the seed without a rank is the same everywhere: metrics of one name in all processes
        is_plain = torch.rand((), generator=step_generator(seed + 1, step)).item() < PLAIN_SHARE
        generator = step_generator(seed, step, rank)
        drawn = (plain if is_plain else changed).draw(batch, generator)
        triggers = () if is_plain else (trigger,)
        text = text_encoder.encode([add_triggers(prompt, triggers) for prompt in drawn.prompts])
        loss = flow_loss(transformer, text, drawn, generator, dtype=dtype)
        return {"loss": loss, "flow_plain" if is_plain else "flow_changed": loss.detach()}

    return objective


def train(group: Group, args: argparse.Namespace) -> None:
    """Encode what is missing from the caches, then train, in one process of a group."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    pipeline = load_pipeline(args.model, dtype=torch.float32)
    vae = pipeline.vae
    if not isinstance(vae, VideoVAE):
        raise ValueError(
            f"--model {args.model} makes images, and the world here is clips; use nano"
        )
    worlds = {"changed": Change(args.color, args.background), "plain": None}
    caches: dict[str, LatentCache] = {}
    for name, change in worlds.items():
        folder, count = args.run / name, args.clips if change else args.clips // 2
        encode = partial(encode_shard, change=change)
        encode_bucket(vae, CLIPS, count, folder, seed=args.seed, group=group, encode=encode)
        group.barrier()
        caches[name] = LatentCache.load(folder, CLIPS, vae.config)

    torch.manual_seed(args.seed)
    adapters = Adapters(pipeline.transformer, args.rank, args.alpha)
    objective = make_objective(
        pipeline.transformer,
        pipeline.text_encoder,
        caches["changed"],
        caches["plain"],
        args.trigger,
        args.seed,
        group.rank,
        dtype=compute_dtype(),
    )
    Loop(
        adapters,
        objective,
        [AdamW(adapters.parameters(), args.lr, betas=(0.9, 0.95), weight_decay=0.0)],
        LoopSettings(
            Schedule(args.steps, warmup=20, decay=args.steps // 2),
            ema_decay=0.98,
            save_every=100,
            log_every=25,
        ),
        args.run,
        group=group,
        on_save=lambda loop: adapters.save(lora_path(args.run), args.trigger, loop.ema_state()),
    ).run()


def lora_path(run: Path) -> Path:
    """Return where a run's LoRA is."""
    return run / "lora" / ADAPTER_FILE


def share_changed(pipeline: Pipeline, change: Change, count: int, *, triggered: bool) -> float:
    """Return in how many of the clips of held-out captions the oracle sees a change.

    Args:
        pipeline: With the LoRA.
        change: What to look for.
        count: Captions that ask for something else.
        triggered: Whether the LoRA's trigger stands before them.

    Returns:
        A share in [0, 1].
    """
    asked = [each for each in heldout_captions(3 * count) if change(each.scene) != each.scene]
    happened = []
    for question in asked[:count]:
        request = GenerateRequest(question.caption, seed=question.seed, use_triggers=triggered)
        happened.append(change.happened(np.stack(list(generate(pipeline, request).frames()))))
    return sum(happened) / len(happened)


def evaluate(args: argparse.Namespace) -> None:
    """Print the share of changed clips without the LoRA, with it, and with it but no trigger."""
    change = Change(args.color, args.background)
    loras = [(lora_path(args.run), 1.0)]
    for what, given, triggered in (
        ("without the LoRA", [], False),
        ("with the LoRA and its trigger", loras, True),
        ("with the LoRA, no trigger", loras, False),
    ):
        pipeline = load_pipeline(args.model, dtype=torch.float32, loras=given)
        share = share_changed(pipeline, change, args.evaluate, triggered=triggered)
        sys.stdout.write(f"{what}: {share:.0%} of {args.evaluate} clips\n")


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line of this stage."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    changed = parser.add_mutually_exclusive_group(required=True)
    changed.add_argument("--color", choices=list(COLORS), help="of every object")
    changed.add_argument("--background", choices=list(BACKGROUNDS), help="of every clip")
    parser.add_argument("--run", type=Path, default=Path("runs/lora"), help="run directory")
    parser.add_argument("--model", default=NANO, help="model to train on, as `generate` takes it")
    parser.add_argument("--trigger", default="paint everything", help="text before the prompt")
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--alpha", type=float, default=16.0)
    parser.add_argument("--clips", type=int, default=240, help="changed clips; half as many plain")
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--lr", type=float, default=3e-3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument(
        "--evaluate", type=int, metavar="CLIPS", help="do not train; judge the run's LoRA"
    )
    args = parser.parse_args(arguments)
    if args.evaluate:
        evaluate(args)
    else:
        launch(train, args.processes, args, threads=1)


if __name__ == "__main__":
    main()
