"""K5_Settings on a MODEL: outputs, what the samplers then do, and other nodes before it."""

from __future__ import annotations

import sys
from dataclasses import replace

import pytest
import torch

from kandinsky_core.checkpoint import load_transformer
from kandinsky_core.flow import make_noise, timesteps
from kandinsky_core.flow import sample as core_sample
from kandinsky_core.guided_model import GuidedModel
from kandinsky_core.text import TextConditioning

NAMES = ("steps", "cfg", "shift", "fps", "width", "height", "length", "model", "negative", "report")
TOLERANCE = 1e-4


@pytest.fixture
def settle(run):
    """Run K5_Settings; returns its outputs by name."""

    def call(model, **inputs):
        return dict(zip(NAMES, run("K5_Settings", model=model, **inputs), strict=True))

    return call


@pytest.fixture
def pro(load_model, tiny_file):
    """Yield a tiny MODEL whose checkpoint has two size classes, as Pro image to video has."""
    model = load_model(tiny_file)
    info = model.model.info
    small = replace(info.settings, shift=10.0, num_frames=121)
    large = replace(
        small, shift=5.0, attention="nabla", nabla_p=0.8, sizes=((768, 1280),), larger=None
    )
    model.model.info = replace(info, settings=replace(small, larger=large))
    yield model
    model.model.info = info


def said(outputs):
    return dict(line.split(": ", 1) for line in outputs["report"].splitlines()[1:])


def by_core(model, prompts, *, shift, rope_scale):
    network, _ = load_transformer(model.model.info.path, dtype=torch.float32)
    text = [
        TextConditioning(
            tokens, torch.ones(tokens.shape[:2], dtype=torch.bool), extra["pooled_output"]
        )
        for ((tokens, extra),) in prompts
    ]
    guided = GuidedModel(network, *text, scale=3.0, rope_scale=rope_scale)
    *_, last = core_sample(guided, make_noise((1, 16, 2, 8, 8), seed=7), timesteps(4, shift))
    return model.model.process_latent_out(last.latents)


def test_values_of_the_checkpoint_and_their_sources(settle, model):
    outputs = settle(model)
    assert (outputs["steps"], outputs["cfg"], outputs["shift"]) == (16, 4, 3)
    assert (outputs["width"], outputs["height"], outputs["length"]) == (128, 128, 17)
    assert (outputs["fps"], outputs["negative"]) == (24, "")
    first, *rest = outputs["report"].splitlines()
    assert first.startswith("transformer.safetensors: nano, task t2v (metadata)")
    assert all(line.endswith("(checkpoint table)") for line in rest)


def test_untrained_lengths_are_marked_and_all_trained_ones_shown(settle, model, pro):
    assert said(settle(model))["trained lengths"] == "1, 17, 25 (checkpoint table)"
    assert said(settle(model, length=25))["length"] == "25 (typed here)"
    marked = "21 (typed here, not a length it was trained at)"
    assert said(settle(model, length=21))["length"] == marked
    sizes = said(settle(pro, length=17))["trained sizes"]
    assert sizes == "768 x 512, 512 x 768, 512 x 512, 1280 x 768 (checkpoint table)"


def test_orientation_takes_a_trained_size_unless_one_is_typed(settle, model):
    info = model.model.info
    sizes = ((64, 128), (128, 64))
    model.model.info = replace(info, settings=replace(info.settings, sizes=sizes, larger=None))
    try:
        upright = settle(model, orientation="portrait")
        typed = settle(model, orientation="portrait", width=64, height=64)
    finally:
        model.model.info = info
    assert (upright["width"], upright["height"]) == (64, 128)
    assert said(upright)["width x height"] == "64 x 128 (checkpoint table, portrait)"
    assert (typed["width"], typed["height"]) == (64, 64)


def test_model_with_nothing_typed_samples_as_before(settle, model, sample, ksample):
    applied = settle(model)["model"]
    assert torch.equal(sample(applied), sample(model))
    assert torch.equal(ksample(applied), ksample(model))


def test_what_is_typed_reaches_both_samplers(settle, model, prompts, sample, ksample):
    outputs = settle(model, shift=6.0, rope_scale=2.5, steps=9, cfg=1.5, length=25)
    expected = by_core(model, prompts, shift=6.0, rope_scale=(1.0, 2.5, 2.5))
    assert (sample(outputs["model"]) - expected).abs().max() < TOLERANCE
    assert (ksample(outputs["model"]) - expected).abs().max() < TOLERANCE
    assert (sample(model) - expected).abs().max() > 1e-2
    assert (outputs["steps"], outputs["cfg"], outputs["length"]) == (9, 1.5, 25)
    for name, value in (("shift", "6"), ("RoPE scale", "1, 2.5, 2.5"), ("length", "25")):
        assert said(outputs)[name] == f"{value} (typed here)"


def test_a_size_class_stays_with_the_model_at_any_size(settle, model, prompts, sample):
    outputs = settle(model, size_class="large")
    assert (outputs["width"], outputs["height"]) == (256, 256)
    expected = by_core(model, prompts, shift=3.0, rope_scale=(1.0, 2.0, 2.0))
    assert (sample(outputs["model"]) - expected).abs().max() < TOLERANCE
    assert (sample(model) - expected).abs().max() > 1e-3


def test_the_class_decides_shift_and_attention(settle, pro):
    small, large = settle(pro), settle(pro, width=1280, height=768)
    assert (small["shift"], large["shift"]) == (10, 5)
    assert (said(small)["attention"], said(large)["P"]) == (
        "dense (checkpoint table)",
        "0.8 (checkpoint table)",
    )
    typed = settle(pro, width=1280, height=768, attention="dense")
    assert said(typed)["attention"] == "dense (typed here)"
    with pytest.raises(ValueError, match=r"P is 0.5 and attention is dense here"):
        settle(pro, width=1280, height=768, attention="dense", cdf_threshold=0.5)
    with pytest.raises(ValueError, match=r"width 784 must be a multiple of 128"):
        settle(pro, width=784, height=1280)


def test_attention_and_p_are_those_of_the_nabla_node(run, settle, load_model, tiny_file, sample):
    tiny = load_model(tiny_file)
    numbers = {"window": True, "window_t": 1, "window_h": 1, "window_w": 1, "min_blocks": 0}
    numbers |= {"dense_above": 1.0, "tile": "1x2x2", "backend": "auto"}
    sparse = run("K5_Nabla", model=tiny, mode="on", cdf_threshold=0.3, **numbers)[0]
    outputs = settle(sparse, width=64, height=64, length=5)
    assert said(outputs)["P"] == "0.3 (set on the model before this node)"
    assert torch.equal(sample(outputs["model"]), sample(sparse))
    # all of it is kept: dense by another way
    full = settle(sparse, width=64, height=64, length=5, cdf_threshold=1.0)
    assert said(full)["P"] == "1 (typed here)"
    assert (sample(full["model"]) - sample(tiny)).abs().max() < TOLERANCE
    dense = settle(sparse, width=64, height=64, length=5, attention="dense")
    assert torch.equal(sample(dense["model"]), sample(tiny))
    assert torch.equal(sample(sparse), sample(outputs["model"]))


def test_one_after_another_changes_only_what_it_is_told(settle, model, prompts, sample):
    first = settle(model, rope_scale=2.5, shift=6.0)
    second = settle(first["model"], shift=2.0)
    assert said(second)["RoPE scale"] == "1, 2.5, 2.5 (set on the model before this node)"
    expected = by_core(model, prompts, shift=2.0, rope_scale=(1.0, 2.5, 2.5))
    assert (sample(second["model"]) - expected).abs().max() < TOLERANCE


def test_a_native_shift_is_kept_unless_one_is_typed(host, settle, model, sample):
    shifted = host.extra("nodes_model_advanced").ModelSamplingSD3().patch(model, 7.0)[0]
    kept, typed = settle(shifted), settle(shifted, shift=2.0)
    assert said(kept)["shift"] == "7 (set on the model before this node)"
    assert torch.equal(sample(kept["model"]), sample(model, shift=7.0))
    assert torch.equal(sample(typed["model"]), sample(model, shift=2.0))


def test_an_image_is_one_frame_whatever_is_typed(settle, tiny_image_model):
    outputs = settle(tiny_image_model, length=5)
    assert outputs["length"] == 1
    assert said(outputs)["length"] == "1 (an image is one frame)"


def test_the_report_is_shown_on_the_node(host, model, monkeypatch):
    shown = []

    class Server:
        def send_progress_text(self, text, node_id):
            shown.append((text, node_id))

    fake = type("server", (), {"PromptServer": type("P", (), {"instance": Server()})})
    monkeypatch.setitem(sys.modules, "server", fake)
    node = host.pack["K5_Settings"].PREPARE_CLASS_CLONE({"UNIQUE_ID": "12"})
    (*_, report) = node.execute(model=model).result
    assert shown == [(report, "12")]


def test_what_does_not_fit_is_one_sentence(settle, model, tiny_image_model):
    with pytest.raises(ValueError, match="width is given without height"):
        settle(model, width=128)
    with pytest.raises(ValueError, match=r"length of 18 frames .*17 and 21"):
        settle(model, length=18)
    with pytest.raises(ValueError, match=r"size_class: .* choose auto"):
        settle(tiny_image_model, size_class="large")
