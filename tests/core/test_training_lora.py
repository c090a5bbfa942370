"""The stage that trains a LoRA, at toy sizes."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from torch.optim import AdamW

from kandinsky_core.checkpoint import layer_shapes, match_lora, merge_loras, read_lora
from kandinsky_core.family.variants import NANO_VIDEO_VAE, VARIANTS
from kandinsky_core.models import CrossDiT, VideoVAE
from kandinsky_core.text import TextConditioning
from kandinsky_core.training.data.batch import LatentBatch
from kandinsky_core.training.data.latents import Bucket, LatentCache, encode_bucket, encode_shard
from kandinsky_core.training.distributed import Group
from kandinsky_core.training.layout import LABELS, OBJECT_ENTRIES
from kandinsky_core.training.loop import Loop, LoopSettings
from kandinsky_core.training.objectives import flow_loss
from kandinsky_core.training.optim import Schedule
from kandinsky_core.training.stages import lora as lora_stage
from kandinsky_core.training.stages.lora import Adapters, Change, make_objective
from kandinsky_core.training.world import COLORS, ObjectSpec, Scene, render

TINY = replace(VARIANTS["debug"], text_dim=16, pooled_dim=16, num_visual_blocks=1)
TINY_VAE = replace(
    NANO_VIDEO_VAE, block_out_channels=(8, 8, 8), norm_num_groups=2, latent_channels=4
)
TOY = Bucket(64, 5)
TRIGGER = "zorb"


class Text:
    """An encoder that gives every prompt tokens of its own, and remembers the prompts."""

    def __init__(self):
        self.seen = []

    def encode(self, prompts, **_):
        self.seen.append(list(prompts))
        rows = [
            torch.randn(3, 16, generator=torch.Generator().manual_seed(sum(prompt.encode())))
            for prompt in prompts
        ]
        tokens = torch.stack(rows)
        return TextConditioning(
            tokens, torch.ones(tokens.shape[:2], dtype=torch.bool), tokens[:, 0]
        )


def trained_network():
    """Return a network whose blocks already do something."""
    torch.manual_seed(0)
    network = CrossDiT(TINY)
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.15)
    return network


def toy_batch():
    generator = torch.Generator().manual_seed(3)
    latents = torch.randn(4, 4, 2, 4, 4, generator=generator)
    given = torch.zeros(4, dtype=torch.bool)
    layout = torch.zeros(4, 2, 3, OBJECT_ENTRIES)
    return LatentBatch(latents, latents[:, :, :1], given, ["a red circle"] * 4, layout)


def toy_cache(value, captions=("a red circle",)):
    """Two clips of one value each."""
    shape = (2, 4, 2, 4, 4)
    return LatentCache(
        TOY,
        TINY_VAE,
        torch.full(shape, value, dtype=torch.float16),
        torch.full((2, 4, 1, 4, 4), value, dtype=torch.float16),
        [list(captions)] * 2,
        torch.zeros(2, 2, 3, OBJECT_ENTRIES, dtype=torch.float16),
        torch.zeros(2, len(LABELS), dtype=torch.float16),
    )


def toy_loop(run_dir, text=None):
    network = trained_network()
    adapters = Adapters(network, rank=4, alpha=8.0)
    objective = make_objective(
        network, text or Text(), toy_cache(1.0), toy_cache(-1.0), TRIGGER, seed=5, batch=2
    )
    settings = LoopSettings(Schedule(20, warmup=2), save_every=100, log_every=100)
    optimizer = AdamW(adapters.parameters(), 1e-2)

    def save(loop):
        adapters.save(run_dir / "lora" / "adapter_model.safetensors", TRIGGER, loop.ema_state())

    return Loop(adapters, objective, [optimizer], settings, run_dir, on_save=save)


def velocity(network):
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(1, TINY.input_channels, 2, 4, 4, generator=generator)
    text = torch.randn(1, 3, 16, generator=generator)
    with torch.no_grad():
        return network(x, torch.tensor([0.5]), text, text[:, 0])


def test_adapters_begin_by_adding_nothing_and_freeze_the_rest():
    network = trained_network()
    before, names = velocity(network), set(network.state_dict())
    adapters = Adapters(network, rank=4, alpha=8.0)
    assert torch.equal(velocity(network), before)
    assert not any(parameter.requires_grad for parameter in network.parameters())
    assert all(parameter.requires_grad for parameter in adapters.parameters())
    assert set(network.state_dict()) == names
    # a text block has 4 + 2 layers, a visual block 4 + 4 + 2
    assert len(adapters.layers) == 6 + 10


def test_one_batch_overfits_and_the_network_stays():
    network, batch = trained_network(), toy_batch()
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    adapters = Adapters(network, rank=8, alpha=8.0)
    optimizer = AdamW(adapters.parameters(), 2e-2)
    text, losses = Text().encode(batch.prompts), []
    for _ in range(80):
        loss = flow_loss(network, text, batch, torch.Generator().manual_seed(5))
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < 0.4 * losses[0]
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())


def test_resumed_run_has_the_same_next_loss(tmp_path):
    whole = toy_loop(tmp_path / "whole")
    losses = [whole.train_step()["loss"] for _ in range(5)]
    first = toy_loop(tmp_path / "parts")
    for _ in range(3):
        first.train_step()
    first.save(first.checkpoint_path)
    second = toy_loop(tmp_path / "parts")
    assert [second.train_step()["loss"] for _ in range(2)] == losses[3:]


def test_saved_lora_does_what_the_adapters_did(tmp_path):
    loop = toy_loop(tmp_path)
    loop.run()
    lora = read_lora(tmp_path / "lora")
    assert (lora.style, lora.ranks, lora.trigger) == ("peft", [4], TRIGGER)
    assert (tmp_path / "lora" / "adapter_config.json").exists()

    adapted = trained_network()
    adapters = Adapters(adapted, rank=4, alpha=8.0)
    adapters.load_state_dict(loop.ema_state())
    merged = trained_network().requires_grad_(False)
    match = match_lora(lora, layer_shapes(merged))
    assert match.note == ""
    plain = velocity(merged)
    merge_loras(merged, [(match, 1.0)])
    torch.testing.assert_close(velocity(merged), velocity(adapted), atol=1e-5, rtol=1e-4)
    assert (velocity(merged) - plain).abs().max() > 1e-3


def test_the_trigger_stands_before_changed_clips_alone(tmp_path):
    text = Text()
    loop = toy_loop(tmp_path, text)
    kinds = ["plain" if "flow_plain" in loop.train_step() else "changed" for _ in range(20)]
    assert 1 <= kinds.count("plain") <= 12
    for kind, prompts in zip(kinds, text.seen, strict=True):
        for prompt in prompts:
            assert prompt.startswith(TRIGGER) == (kind == "changed")
            assert prompt in (
                ("zorb", "zorb a red circle") if kind == "changed" else ("", "a red circle")
            )


def test_changed_clips_keep_their_captions(tmp_path):
    vae = VideoVAE(TINY_VAE).requires_grad_(False)
    caches = []
    for name, change in (("plain", None), ("changed", Change(color="purple"))):
        encode = partial(encode_shard, change=change)
        encode_bucket(vae, TOY, 8, tmp_path / name, seed=0, group=Group(), encode=encode)
        caches.append(LatentCache.load(tmp_path / name, TOY, TINY_VAE))
    plain, changed = caches
    assert plain.captions == changed.captions
    assert not torch.equal(plain.latents, changed.latents)
    labels = {
        name: changed.labels[:, LABELS.index(("color", name))].sum().item() for name in COLORS
    }
    assert labels.pop("purple") == len(changed.captions)
    assert not any(labels.values())


@pytest.mark.parametrize("change", [Change(color="purple"), Change(background="navy")])
def test_the_oracle_sees_a_change(change):
    scene = Scene("white", "still", (ObjectSpec("circle", "red", "large"),))
    assert change.happened(render(change(scene), 128, 5))
    assert not change.happened(render(scene, 128, 5))
    assert not change.happened(np.full((5, 128, 128, 3), 250, np.uint8))


def test_evaluation_compares_without_with_and_untriggered(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(lora_stage, "load_pipeline", lambda _model, loras, **_: loras)
    asked = []

    def share(loras, change, count, *, triggered):
        asked.append((loras, change, count, triggered))
        return 0.25

    monkeypatch.setattr(lora_stage, "share_changed", share)
    arguments = ["--color", "red", "--run", str(tmp_path), "--evaluate", "40"]
    lora_stage.main(arguments)
    trained = [(lora_stage.lora_path(tmp_path), 1.0)]
    change = lora_stage.Change("red", None)
    assert asked == [
        ([], change, 40, False),
        (trained, change, 40, True),
        (trained, change, 40, False),
    ]
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(": ")[1] for line in lines] == ["25% of 40 clips"] * 3
