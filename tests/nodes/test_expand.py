"""Expand Prompt: ComfyUI's own Qwen writes what transformers' `generate` writes."""

from __future__ import annotations

import logging

import pytest
import torch
import transformers
from safetensors.torch import save_file

from kandinsky_core.text import TokenChooser, fit_for_qwen
from kandinsky_core.text.expand import expansion_chat

HIDDEN = 256
QWEN_CONFIG = {
    "text_config": {
        "vocab_size": 152064,
        "hidden_size": HIDDEN,
        "intermediate_size": 256,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "rms_norm_eps": 1e-6,
        "rope_theta": 1_000_000.0,
        "rope_scaling": {"type": "mrope", "mrope_section": [16, 24, 24]},
    },
    "vision_config": {
        "depth": 2,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_heads": 2,
        "out_hidden_size": HIDDEN,
        "fullatt_block_indexes": [1],
    },
}
CLIP_CONFIG = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 1,
    "projection_dim": 64,
    "hidden_act": "quick_gelu",
}
NUM_TOKENS = 12
SENTENCE = "A red fox walks through deep snow at the edge of a forest."


class Recorder(TokenChooser):
    """Remembers what it chose."""

    def __init__(self, **options):
        super().__init__(**options)
        self.tokens = []

    def __call__(self, logits):
        self.tokens.append(super().__call__(logits))
        return self.tokens[-1]


@pytest.fixture(scope="module")
def reference():
    """Return transformers' Qwen2.5-VL with random weights, norms and biases included."""
    torch.manual_seed(0)
    with torch.inference_mode(False):
        model = transformers.Qwen2_5_VLForConditionalGeneration(
            transformers.Qwen2_5_VLConfig(**QWEN_CONFIG)
        ).eval()
        for name, parameter in model.named_parameters():
            spread, centre = (0.2, 1.0) if "norm" in name or "ln_q" in name else (0.1, 0.0)
            torch.nn.init.normal_(parameter.data, std=spread, mean=centre)
    return model


@pytest.fixture(scope="module")
def files(host, reference):
    """Write text encoder files under ComfyUI's names; the vision tower is left out of them."""
    folder = host.base / "models" / "text_encoders"
    weights = {
        name.replace("model.language_model.", "model."): tensor.detach().clone()
        for name, tensor in reference.state_dict().items()
        if "visual." not in name
    }
    assert weights["lm_head.weight"].shape == (152064, HIDDEN)
    save_file(weights, folder / "writer.safetensors")
    del weights["lm_head.weight"]
    save_file(weights, folder / "reader.safetensors")
    with torch.inference_mode(False):
        clip = transformers.CLIPTextModel(transformers.CLIPTextConfig(**CLIP_CONFIG))
    prefixed = {
        "text_model." + name.removeprefix("text_model."): tensor.detach().clone()
        for name, tensor in clip.state_dict().items()
    }
    save_file(prefixed, folder / "small_clip.safetensors")
    return folder


@pytest.fixture(scope="module")
def load(run, files):
    def load_clip(name):
        assert (files / name).is_file()
        names = {"qwen_name": name, "clip_name": "small_clip.safetensors"}
        return run("K5_LoadTextEncoders", **names, task="t2v")[0]

    return load_clip


@pytest.fixture(scope="module")
def writer_clip(load):
    """As the loader makes it: without a vision tower."""
    return load("writer.safetensors")


@pytest.fixture(scope="module")
def seeing_clip(load, reference, give_sight):
    """Return the same with a small vision tower."""
    weights = reference.model.visual.state_dict()
    return give_sight(load("writer.safetensors"), weights, QWEN_CONFIG["vision_config"])


@pytest.fixture
def write(host):
    """Write with a CLIP; returns the tokens."""

    def call(clip, chat, picture=None, temperature=0.0, seed=0, max_tokens=NUM_TOKENS):
        choose = Recorder(temperature=temperature, seed=seed)
        host.part("nodes.host.text.expand").QwenWriter(clip).write(
            chat, picture, choose, max_tokens
        )
        return choose.tokens

    return call


@pytest.fixture
def expand(run):
    """Run the node; returns prompt and note."""

    def call(clip, **inputs):
        given = {
            "prompt": "a fox in the snow",
            "task": "t2v",
            "language": "English",
            "seed": 0,
            "max_tokens": 40,
            "temperature": 0.7,
        }
        return run("K5_ExpandPrompt", clip=clip, **(given | inputs))

    return call


def greedy(reference, tokenizer, chat, picture=None):
    """Ids that transformers' `generate` writes, from inputs of its own processor."""
    processor = transformers.Qwen2_5_VLProcessor(
        transformers.Qwen2VLImageProcessor(max_pixels=12845056),
        tokenizer,
        transformers.Qwen2VLVideoProcessor(),
    )
    images = None if picture is None else list(picture)
    inputs = processor(text=[chat], images=images, return_tensors="pt")
    with torch.inference_mode(False), torch.no_grad():
        inputs = {name: tensor.clone() for name, tensor in inputs.items()}
        ids = reference.generate(
            **inputs, do_sample=False, max_new_tokens=NUM_TOKENS, eos_token_id=151645
        )
    return ids[0, inputs["input_ids"].shape[1] :].tolist()


@pytest.mark.parametrize("prompt", ["a fox in the snow", "Лиса на снегу 🙂", ""])
def test_greedy_text_equals_generate(prompt, write, writer_clip, reference):
    chat = expansion_chat(prompt, "Write it out.", with_image=False)
    expected = greedy(reference, writer_clip.tokenizer.qwen, chat)
    assert len(set(expected)) > 3  # and not the same token over and over
    assert write(writer_clip, chat) == expected


def test_greedy_text_about_an_image_equals_generate(write, seeing_clip, reference):
    pixels = torch.rand(1, 3, 150, 230, generator=torch.Generator().manual_seed(1)) * 2 - 1
    picture = fit_for_qwen(pixels)
    chat = expansion_chat("it turns", "Write it out.", with_image=True)
    expected = greedy(reference, seeing_clip.tokenizer.qwen, chat, picture)
    assert write(seeing_clip, chat, picture) == expected
    assert write(seeing_clip, chat, picture.flip(-1)) != expected


def test_after_the_prompt_each_token_costs_one_forward_pass_of_one_token(write, writer_clip):
    lengths = []
    layer = writer_clip.cond_stage_model.qwen.transformer.model.layers[0]
    hook = layer.register_forward_pre_hook(
        lambda _module, _args, kwargs: lengths.append(kwargs["x"].shape[1]), with_kwargs=True
    )
    chat = expansion_chat("a fox", "Write it out.", with_image=False)
    write(writer_clip, chat, max_tokens=5)
    hook.remove()
    assert lengths == [len(writer_clip.tokenizer.qwen(chat)["input_ids"]), 1, 1, 1, 1]


@pytest.mark.parametrize("sees", [False, True])
def test_the_same_is_written_partially_loaded(request, write, partially, sees):
    clip = request.getfixturevalue("seeing_clip" if sees else "writer_clip")
    pixels = torch.rand(1, 3, 150, 230, generator=torch.Generator().manual_seed(1)) * 2 - 1
    picture = fit_for_qwen(pixels) if sees else None
    chat = expansion_chat("it turns", "Write it out.", with_image=sees)
    whole = write(clip, chat, picture)
    assert len(set(whole)) > 3
    partially()
    assert write(clip, chat, picture) == whole
    partially.check(clip.patcher)
    left = partially.left["QwenClipModel"]
    assert any(".self_attn.k_proj" in name for name in left)
    assert any("visual" in name for name in left)  # the tower is there even if no file has one
    assert partially.left["LanguageHead"] == {"lm_head.weight"}


def test_draws_depend_on_the_seed(write, writer_clip):
    chat = expansion_chat("a fox", "Write it out.", with_image=False)
    first = write(writer_clip, chat, temperature=1.0, seed=1, max_tokens=6)
    assert write(writer_clip, chat, temperature=1.0, seed=1, max_tokens=6) == first
    assert write(writer_clip, chat, temperature=1.0, seed=2, max_tokens=6) != first


def test_writing_leaves_encoding_as_it_was(run, expand, writer_clip):
    def encode():
        return run("K5_TextEncode", clip=writer_clip, text="a fox", task="t2v")[0][0][0]

    before = encode()
    expand(writer_clip)
    assert torch.equal(encode(), before)


# the node


def test_nonsense_gives_the_prompt_back_with_a_note(expand, writer_clip, caplog):
    with caplog.at_level(logging.WARNING):
        prompt, note = expand(writer_clip)
    assert prompt == "a fox in the snow"
    assert "thrown away because" in note and note in caplog.text


def test_what_the_model_wrote_is_the_prompt(host, expand, writer_clip, monkeypatch):
    """Random weights write no prose, so the tokens of some are put in their place."""
    tokenizer = writer_clip.tokenizer.qwen
    asked = []

    def decode(_qwen, _head, ids, choose, max_tokens, *_):
        asked.append((tokenizer.decode(ids), choose.temperature, max_tokens))
        return tokenizer(SENTENCE + "<|im_end|>")["input_ids"]

    monkeypatch.setattr(host.part("nodes.host.text.expand"), "decode", decode)
    prompt, note = expand(writer_clip, prompt="лиса", language="as written", temperature=0.2)
    assert prompt == SENTENCE
    assert note == "Expanded from 1 to 13 words."
    ((chat, temperature, max_tokens),) = asked
    assert "Write in the language of the request." in chat
    assert chat.endswith("<|im_start|>user\nлиса<|im_end|>\n<|im_start|>assistant\n")
    assert (temperature, max_tokens) == (0.2, 40)


def test_nano_passes_the_prompt_through(expand, clip):
    prompt, note = expand(clip, prompt="a red circle moves right")
    assert prompt == "a red circle moves right"
    assert note.startswith("This text encoder cannot write (it is nano's")


def test_a_file_without_a_language_head_is_named(expand, load):
    prompt, note = expand(load("reader.safetensors"))
    assert prompt == "a fox in the snow"
    assert note.startswith("reader.safetensors holds no lm_head.weight")


@pytest.mark.parametrize("task", ["i2v", "i2i"])
def test_a_file_without_a_vision_tower_is_named(expand, writer_clip, task):
    prompt, note = expand(writer_clip, task=task, image=torch.zeros(1, 64, 64, 3))
    assert prompt == "a fox in the snow"
    assert "writer.safetensors holds no vision tower" in note


def test_the_picture_is_looked_at(host, expand, seeing_clip, monkeypatch):
    seen = []
    monkeypatch.setattr(
        host.part("nodes.host.text.expand"),
        "decode",
        lambda _q, _h, ids, *_: seen.append(ids) or [],
    )
    image = torch.rand(2, 90, 120, 4)
    expand(seeing_clip, task="i2v", image=image)
    expand(seeing_clip, task="t2v", image=image)
    pictures = [[each["data"] for each in ids if isinstance(each, dict)] for ids in seen]
    assert [len(each) for each in pictures] == [1, 0]
    assert tuple(pictures[0][0].shape) == (1, 84, 112, 3)
    assert (pictures[0][0].mean() - image[0, ..., :3].mean()).abs() < 0.01


def test_special_tokens_in_the_prompt_are_refused(expand, writer_clip):
    with pytest.raises(ValueError, match=r"prompt: found <\|im_end\|>"):
        expand(writer_clip, prompt="a fox <|im_end|>")


def test_cancel_stops_at_the_next_token(host, expand, writer_clip):
    management = host.module("comfy.model_management")
    utils = host.module("comfy.utils")
    shown = []

    def show(value, total, _preview, **_):
        shown.append((value, total))
        if value == 3:
            management.interrupt_current_processing()

    utils.set_progress_bar_global_hook(show)
    try:
        with pytest.raises(management.InterruptProcessingException):
            expand(writer_clip)
    finally:
        utils.set_progress_bar_global_hook(None)
    assert shown == [(1, 40), (2, 40), (3, 40)]
    attention = writer_clip.cond_stage_model.qwen.transformer.model.layers[0].self_attn
    assert not attention._forward_pre_hooks
