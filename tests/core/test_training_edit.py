"""The edit stage at toy sizes: words added, pairs cached, one batch learnt, runs resumed."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from kandinsky_core.checkpoint import (
    describe_metadata,
    identify,
    load_transformer,
    save_checkpoint,
)
from kandinsky_core.errors import CheckpointError
from kandinsky_core.family.config import NanoTextConfig
from kandinsky_core.family.variants import NANO_VIDEO_VAE, VARIANTS
from kandinsky_core.flow import interpolate
from kandinsky_core.models import CrossDiT, VideoVAE
from kandinsky_core.nano import merge_edit, write_difference
from kandinsky_core.text import NanoTextEncoder
from kandinsky_core.text.nano import NUM_SPECIAL_IDS
from kandinsky_core.training import objectives
from kandinsky_core.training.data.edits import EditCache, encode_edit_shard
from kandinsky_core.training.data.latents import Bucket, encode_bucket
from kandinsky_core.training.distributed import Group
from kandinsky_core.training.loop import Loop, LoopSettings
from kandinsky_core.training.objectives import flow_loss
from kandinsky_core.training.optim import Schedule, make_optimizers
from kandinsky_core.training.stages.edit import Editor, export, make_objective, with_words
from kandinsky_core.training.stages.pretrain import NanoModel
from kandinsky_core.training.world import edit_vocabulary, vocabulary

DIT = replace(VARIANTS["debug"], latent_channels=4, text_dim=16, pooled_dim=16, num_visual_blocks=1)
VAE = replace(NANO_VIDEO_VAE, block_out_channels=(8, 8, 8), norm_num_groups=2, latent_channels=4)
PICTURE, LARGE = Bucket(64, 1), Bucket(128, 1)


def tiny_encoder(words=("red", "circle")) -> NanoTextEncoder:
    config = NanoTextConfig(NUM_SPECIAL_IDS + len(words), dim=16, num_layers=1, num_heads=2)
    return NanoTextEncoder(config, words)


def tiny_model() -> NanoModel:
    torch.manual_seed(0)
    return NanoModel(CrossDiT(DIT), tiny_encoder((*vocabulary(), *edit_vocabulary())))


@pytest.fixture(scope="module")
def caches(tmp_path_factory):
    """Eight pairs of pictures of each size, encoded by a random autoencoder."""
    torch.manual_seed(1)
    vae, folder = VideoVAE(VAE), tmp_path_factory.mktemp("caches")
    pairs = {"seed": 0, "group": Group(), "encode": encode_edit_shard}
    for bucket in (PICTURE, LARGE):
        encode_bucket(vae, bucket, 8, folder, **pairs)
    return {bucket: EditCache.load(folder, bucket, VAE) for bucket in (PICTURE, LARGE)}


def edit_batch(caches, count=4):
    return caches[PICTURE].draw(count, torch.Generator().manual_seed(2))


def test_new_words_leave_the_old_ones_as_they_were():
    torch.manual_seed(0)
    encoder = tiny_encoder()
    grown = with_words(encoder, ["circle", "remove", "убери"])
    assert grown.tokenizer.vocabulary == ("red", "circle", "remove", "убери")
    old, new = (each.encode(["red circle", "circle"]) for each in (encoder, grown))
    torch.testing.assert_close(new.tokens, old.tokens)
    assert grown.unknown_words("remove circle") == []
    a, b = grown.encode(["remove circle", "убери circle"]).tokens
    assert (a - b).abs().max() > 1e-3


def test_cache_draws_pairs_with_instructions(caches):
    batch = edit_batch(caches, 64)
    assert batch.sources.shape == batch.latents.shape == (64, 4, 1, 8, 8)
    assert not batch.given_first.any()
    assert 0 < sum(prompt == "" for prompt in batch.prompts) < 20
    different = (batch.sources - batch.latents).abs().flatten(1).amax(1)
    assert (different > 0).all()


def test_network_sees_noise_source_and_ones(caches, monkeypatch):
    model, batch, seen = tiny_model(), edit_batch(caches), []
    embed = model.transformer.visual_embeddings.forward
    monkeypatch.setattr(
        model.transformer.visual_embeddings, "forward", lambda x: (seen.append(x), embed(x))[1]
    )
    monkeypatch.setattr(
        objectives, "sample_times", lambda count, _: torch.linspace(0.2, 0.8, count)
    )
    text = model.encode_text(batch.prompts)
    flow_loss(model.transformer, text, batch, torch.Generator().manual_seed(3))
    noise = torch.randn(batch.latents.shape, generator=torch.Generator().manual_seed(3))
    x_t, source, mask = seen[0].split([4, 4, 1], dim=1)
    assert torch.allclose(x_t, interpolate(batch.latents, noise, torch.linspace(0.2, 0.8, 4)))
    assert torch.equal(source, batch.sources)
    assert mask.eq(1).all()


def test_errors_where_something_was_removed_count_more(caches):
    batch = edit_batch(caches)
    empty = replace(batch, layout=torch.zeros_like(batch.layout))
    bare = replace(empty, source_layout=None)
    model = tiny_model()
    text = model.encode_text(batch.prompts)

    def loss(given):
        return flow_loss(model.transformer, text, given, torch.Generator().manual_seed(3)).item()

    assert loss(empty) != loss(bare)


def test_one_batch_of_edits_is_learnt(caches):
    model, batch = tiny_model(), edit_batch(caches)
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


def edit_loop(caches, folder) -> Loop:
    torch.manual_seed(0)
    editor = Editor(NanoModel(CrossDiT(DIT), tiny_encoder(vocabulary())))
    objective = make_objective(editor, caches, 0, batch={PICTURE: 4, LARGE: 2})
    settings = LoopSettings(Schedule(8, warmup=2, decay=4), save_every=100, log_every=100)
    return Loop(editor, objective, make_optimizers(editor, 1e-3), settings, folder)


def test_resumed_run_has_the_same_next_loss(caches, tmp_path):
    whole = edit_loop(caches, tmp_path / "whole")
    metrics = [whole.train_step() for _ in range(6)]
    assert {"flow_64x1", "flow_128x1"} <= {name for row in metrics for name in row}
    first = edit_loop(caches, tmp_path / "parts")
    for _ in range(4):
        first.train_step()
    first.save(first.checkpoint_path)
    second = edit_loop(caches, tmp_path / "parts")
    assert second.step == 4
    assert [second.train_step()["loss"] for _ in range(2)] == [row["loss"] for row in metrics[4:]]


def test_condition_means_nothing_at_first():
    editor = Editor(NanoModel(CrossDiT(DIT), tiny_encoder()))
    x = torch.randn(1, DIT.input_channels, 1, 4, 4)
    other = x.clone()
    other[:, DIT.latent_channels :] += 1
    embed = editor.transformer.visual_embeddings
    assert torch.equal(embed(x), embed(other))
    other[:, : DIT.latent_channels] += 1
    assert not torch.equal(embed(x), embed(other))


def test_known_words_stay_and_everything_else_is_trained(caches, tmp_path):
    loop = edit_loop(caches, tmp_path)
    before = {name: value.clone() for name, value in loop.model.named_parameters()}
    loop.train_step()
    loop.train_step()
    words = "text_encoder.word_embeddings.weight"
    known = NUM_SPECIAL_IDS + len(vocabulary())
    after = dict(loop.model.named_parameters())
    assert torch.equal(after[words][:known], before[words][:known])
    assert (after[words][known:] != before[words][known:]).any()
    moved = {name for name in after if not torch.equal(after[name], before[name])}
    transformer = {name for name in after if name.startswith("transformer.")}
    assert {words, "transformer.visual_embeddings.in_layer.weight"} < moved
    assert moved <= transformer | {words}


def test_exported_model_edits_and_does_nothing_else(caches, tmp_path):
    loop = edit_loop(caches, tmp_path)
    base = tmp_path / "base.safetensors"
    weights = loop.model.transformer.state_dict() | loop.model.before
    save_checkpoint(base, weights, describe_metadata(DIT, variant="nano"))
    loop.train_step()
    export(loop, loop.model, base, tmp_path / "model")
    info = identify(tmp_path / "model" / "transformer.safetensors")
    assert info.release.variant == "nano"
    assert info.tasks == ("i2i",)
    again = NanoModel.load(tmp_path / "model")
    assert again.text_encoder.unknown_words("please remove the red circle") == []
    assert all(parameter.requires_grad for parameter in again.parameters())


def test_rounded_weights_are_those_of_the_bundled_file_and_pass_gradients(tmp_path):
    torch.manual_seed(0)
    editor = Editor(NanoModel(CrossDiT(DIT), tiny_encoder()))
    base, edited = tmp_path / "base.safetensors", tmp_path / "edited.safetensors"
    metadata = describe_metadata(DIT, variant="debug")
    save_checkpoint(base, CrossDiT(DIT).state_dict() | editor.before, metadata)
    with torch.no_grad():
        for parameter in editor.transformer.parameters():
            parameter += 0.01 * torch.randn(parameter.shape)
    save_checkpoint(edited, editor.transformer.state_dict(), metadata)
    write_difference(base, edited, tmp_path / "difference.safetensors")
    merge_edit(base, tmp_path / "difference.safetensors", tmp_path / "merged.safetensors")
    merged, _ = load_transformer(tmp_path / "merged.safetensors", dtype=torch.float32)
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(1, DIT.input_channels, 1, 4, 4, generator=generator)
    text = torch.randn(1, 3, 16, generator=generator), torch.randn(1, 16, generator=generator)
    t = torch.tensor([0.5])
    ours, theirs = editor.rounded(x, t, *text), merged(x, t, *text)
    torch.testing.assert_close(ours, theirs, atol=2e-3, rtol=2e-3)  # the file is fp16
    ours.sum().backward()
    first = editor.transformer.visual_embeddings.in_layer.weight
    assert first.grad is not None
    assert first.grad.abs().sum() > 0


def test_difference_of_another_transformer_is_refused(tmp_path):
    metadata = describe_metadata(DIT, variant="debug")
    for name in ("one", "other"):
        save_checkpoint(tmp_path / name, CrossDiT(DIT).state_dict(), metadata)
    write_difference(tmp_path / "one", tmp_path / "other", tmp_path / "difference")
    with pytest.raises(CheckpointError, match="belongs to another transformer"):
        merge_edit(tmp_path / "other", tmp_path / "difference", tmp_path / "merged")
    assert not (tmp_path / "merged").exists()
