"""Writing with Qwen2.5-VL against transformers' own `generate`, token for token.

Weights are tiny and random, the tokenizer is the real one that ComfyUI ships.
"""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from kandinsky_core.__main__ import main
from kandinsky_core.text import (
    CannotWriteError,
    QwenClipTextEncoder,
    TokenChooser,
    Written,
    expand_prompt,
    fit_for_qwen,
)
from kandinsky_core.text.expand import expansion_chat
from kandinsky_core.text.qwen_clip_load import read_language_head
from kandinsky_core.video import write_image

transformers = pytest.importorskip("transformers")

QWEN_TINY = {
    "text_config": {
        "vocab_size": 151936,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "rms_norm_eps": 1e-6,
        "rope_scaling": {"type": "mrope", "mrope_section": [1, 1, 2]},
    },
    "vision_config": {
        "depth": 2,
        "hidden_size": 16,
        "intermediate_size": 24,
        "num_heads": 2,
        "out_hidden_size": 32,
        "fullatt_block_indexes": [1],
    },
}
NUM_TOKENS = 24


class Recorder(TokenChooser):
    """Remembers what it chose."""

    def __init__(self, **options):
        super().__init__(**options)
        self.tokens = []

    def __call__(self, logits):
        self.tokens.append(super().__call__(logits))
        return self.tokens[-1]


@pytest.fixture(scope="module")
def tokenizer():
    cached = Path(__file__).resolve().parents[2] / ".cache" / "comfyui"
    host = Path(os.environ.get("COMFYUI_PATH") or cached)
    folder = host / "comfy" / "text_encoders" / "qwen25_tokenizer"
    if not folder.is_dir():
        pytest.skip(f"no tokenizer at {folder}: set COMFYUI_PATH or run make comfy")
    return transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True)


@pytest.fixture(scope="module")
def reference():
    """Return transformers' own model with random weights, norms and biases included."""
    torch.manual_seed(0)
    model = transformers.Qwen2_5_VLForConditionalGeneration(
        transformers.Qwen2_5_VLConfig(**QWEN_TINY)
    ).eval()
    for name, parameter in model.named_parameters():
        spread, centre = (0.2, 1.0) if "norm" in name or "ln_q" in name else (0.3, 0.0)
        torch.nn.init.normal_(parameter, std=spread, mean=centre)
    return model


@pytest.fixture(scope="module")
def encoder(reference, tokenizer):
    clip = transformers.CLIPTextModel(
        transformers.CLIPTextConfig(
            hidden_size=16, intermediate_size=24, num_hidden_layers=1, num_attention_heads=2
        )
    )
    clip_tokenizer = lambda *_, **__: transformers.BatchEncoding(  # noqa: E731
        {"input_ids": torch.zeros(1, 77, dtype=torch.long)}
    )
    return QwenClipTextEncoder(
        reference.model,
        tokenizer,
        clip,
        clip_tokenizer,
        read_head=lambda: reference.lm_head.weight.detach().clone(),
    )


@pytest.fixture(scope="module")
def picture():
    pixels = torch.rand(1, 3, 150, 230, generator=torch.Generator().manual_seed(1)) * 2 - 1
    return fit_for_qwen(pixels)


def greedy(reference, tokenizer, chat, picture=None):
    """Ids that transformers' `generate` writes, from inputs of its own processor."""
    processor = transformers.Qwen2_5_VLProcessor(
        transformers.Qwen2VLImageProcessor(max_pixels=12845056),
        tokenizer,
        transformers.Qwen2VLVideoProcessor(),
    )
    images = None if picture is None else list(picture)
    inputs = processor(text=[chat], images=images, return_tensors="pt")
    with torch.no_grad():
        ids = reference.generate(
            **inputs, do_sample=False, max_new_tokens=NUM_TOKENS, eos_token_id=151645
        )
    return ids[0, inputs["input_ids"].shape[1] :].tolist()


PROMPTS = ["a fox in the snow", "Лиса на снегу 🙂", ""]


@pytest.mark.parametrize("prompt", PROMPTS)
def test_greedy_text_equals_generate(prompt, encoder, reference, tokenizer):
    chat = expansion_chat(prompt, "Write it out.", with_image=False)
    choose = Recorder(temperature=0, seed=0)
    written = encoder.write(chat, None, choose, NUM_TOKENS)
    expected = greedy(reference, tokenizer, chat)
    assert choose.tokens == expected
    assert len(set(expected)) > 3  # and not the same token over and over
    assert written.text == tokenizer.decode(expected, skip_special_tokens=True)
    assert not written.finished


def test_greedy_text_about_an_image_equals_generate(encoder, reference, tokenizer, picture):
    chat = expansion_chat("it turns", "Write it out.", with_image=True)
    choose = Recorder(temperature=0, seed=0)
    encoder.write(chat, picture, choose, NUM_TOKENS)
    assert choose.tokens == greedy(reference, tokenizer, chat, picture)
    blind = Recorder(temperature=0, seed=0)
    encoder.write(chat, picture.flip(-1), blind, NUM_TOKENS)
    assert blind.tokens != choose.tokens


def test_pictures_are_resized_as_qwens_processor_does():
    pixels = torch.rand(1, 3, 75, 115, generator=torch.Generator().manual_seed(2)) * 2 - 1
    levels = ((pixels + 1) * 127.5).round().to(torch.uint8)
    processor = transformers.Qwen2VLImageProcessor(do_normalize=False, rescale_factor=1.0)
    resized = fit_for_qwen(pixels)
    theirs, ours = (processor(images=list(i), return_tensors="pt") for i in (levels, resized))
    assert theirs["image_grid_thw"].tolist() == ours["image_grid_thw"].tolist() == [[1, 6, 8]]
    assert torch.equal(theirs["pixel_values"], ours["pixel_values"])


def test_a_stop_token_ends_the_answer(encoder, reference, tokenizer, monkeypatch):
    chat = expansion_chat("a fox", "Write it out.", with_image=False)
    expected = greedy(reference, tokenizer, chat)
    third = expected[2]
    assert third not in expected[:2]
    monkeypatch.setattr("kandinsky_core.text.writing.stop_ids", lambda _: [third, 151643])
    choose = Recorder(temperature=0, seed=0)
    written = encoder.write(chat, None, choose, NUM_TOKENS)
    assert choose.tokens == expected[:3]
    assert written.finished


def test_writing_leaves_encoding_as_it_was(encoder, picture):
    before = encoder.encode(["a fox"]).tokens
    encoder.write(
        expansion_chat("a fox", "", with_image=True),
        picture,
        TokenChooser(temperature=0, seed=0),
        3,
    )
    assert torch.equal(encoder.encode(["a fox"]).tokens, before)


def test_random_weights_write_nonsense_which_is_thrown_away(encoder):
    result = expand_prompt(encoder, "a fox in the snow", max_tokens=40)
    assert result.prompt == "a fox in the snow" and not result.expanded
    assert "thrown away because" in result.note


def test_draws_depend_on_the_seed_alone(encoder):
    chat = expansion_chat("a fox", "Write it out.", with_image=False)

    def draw(seed):
        choose = Recorder(temperature=1.0, seed=seed)
        encoder.write(chat, None, choose, 6)
        return choose.tokens

    torch.manual_seed(1)
    first = draw(1)
    torch.manual_seed(2)
    assert draw(1) == first != draw(2)


# the language head in files


def test_the_head_is_read_from_a_file_or_the_shards_of_a_folder(reference, tmp_path):
    weight = reference.lm_head.weight.detach()
    alone, folder = tmp_path / "whole.safetensors", tmp_path / "shards"
    folder.mkdir()
    save_file({"lm_head.weight": weight, "model.x": torch.ones(1)}, alone)
    for number, tensors in enumerate(({"model.y": torch.ones(1)}, {"lm_head.weight": weight}), 1):
        save_file(tensors, folder / f"model-{number:05d}-of-00002.safetensors")
    assert torch.equal(read_language_head(alone), weight)
    assert torch.equal(read_language_head(folder), weight)
    assert read_language_head(folder, torch.bfloat16).dtype == torch.bfloat16


def test_a_head_in_scaled_fp8_is_unscaled(tmp_path):
    codes = torch.tensor([[1.0, -2.0]]).to(torch.float8_e4m3fn)
    parts = {"lm_head.weight": codes, "lm_head.scale_weight": torch.tensor(0.25)}
    save_file(parts, tmp_path / "q.safetensors")
    weight = read_language_head(tmp_path / "q.safetensors", torch.float32)
    assert weight.tolist() == [[0.25, -0.5]]


def test_a_file_without_its_head_is_named(tmp_path):
    save_file({"model.norm.weight": torch.ones(2)}, tmp_path / "encoder_only.safetensors")
    with pytest.raises(CannotWriteError, match=r"encoder_only\.safetensors holds no lm_head"):
        read_language_head(tmp_path / "encoder_only.safetensors")


def test_an_encoder_built_without_a_head_says_so(reference, tokenizer):
    bare = QwenClipTextEncoder(reference.model, tokenizer, torch.nn.Linear(1, 1), None)
    result = expand_prompt(bare, "a fox")
    assert result.prompt == "a fox" and "without Qwen's language head" in result.note


# the command


@pytest.fixture
def folder(reference, tokenizer, tmp_path):
    """Return a Diffusers pipeline's folder with nothing but its text encoders."""
    config = transformers.CLIPTextConfig(
        hidden_size=16, intermediate_size=24, num_hidden_layers=1, num_attention_heads=2
    )
    reference.save_pretrained(tmp_path / "text_encoder")
    transformers.CLIPTextModel(config).save_pretrained(tmp_path / "text_encoder_2")
    source = Path(tokenizer.name_or_path)
    (tmp_path / "tokenizer").symlink_to(source)
    (tmp_path / "tokenizer_2").symlink_to(source.parents[1] / "sd1_tokenizer")
    return tmp_path


def test_the_command_shows_the_picture(folder, tmp_path, capsys, monkeypatch):
    seen = []

    def write(_encoder, chat, image, _choose, _max_tokens):
        seen.append((chat, image))
        return Written("A red fox turns its head to the left.", finished=True)

    monkeypatch.setattr(QwenClipTextEncoder, "write", write)
    write_image(tmp_path / "fox.png", np.full((60, 90, 3), (255, 0, 0), dtype=np.uint8))
    given = ["expand", "it turns", "--text-encoder", str(folder)]
    assert main([*given, "--image", str(tmp_path / "fox.png")]) == 0
    assert capsys.readouterr().out == "A red fox turns its head to the left.\n"
    ((chat, image),) = seen
    assert "it is the first frame" in chat
    assert image[0, :, 20, 20].tolist() == [255, 0, 0]


def test_the_command_prints_a_prompt_and_says_what_was_done(folder, capsys):
    given = ["expand", "a fox", "--text-encoder", str(folder), "--max-tokens", "12"]
    assert main(given) == 0
    printed = capsys.readouterr()
    assert printed.out == "a fox\n"
    assert "note: The expansion was thrown away because" in printed.err
    assert main([*given, "--temperature", "3"]) == 1
    assert "error: temperature is 3.0: expected" in capsys.readouterr().err
