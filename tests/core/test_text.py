"""The conditioning protocol, the templates as data, and the nano text encoder."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from kandinsky_core.errors import CheckpointError
from kandinsky_core.family.config import NanoTextConfig
from kandinsky_core.text import (
    TEMPLATES,
    NanoTextEncoder,
    NanoTokenizer,
    TextConditioning,
    TextEncoder,
    load_nano_text_encoder,
    save_nano_text_encoder,
)
from kandinsky_core.text.templates import TASK_TEMPLATES

VOCABULARY = ("a", "red", "circle", "moves", "left", "красный", "круг", "15")


def conditioning(lengths, *, width=4, pooled=3, padding=0.0):
    """Random conditioning with rows of the given lengths."""
    mask = torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]
    tokens = torch.randn(len(lengths), max(lengths), width).masked_fill(~mask[..., None], padding)
    return TextConditioning(tokens, mask, torch.randn(len(lengths), pooled))


def nano_encoder(**overrides):
    torch.manual_seed(0)
    config = NanoTextConfig(
        vocab_size=3 + len(VOCABULARY),
        **{"dim": 32, "num_heads": 4, "max_len": 6, **overrides},
    )
    return NanoTextEncoder(config, VOCABULARY).eval()


# protocol


@pytest.mark.parametrize(
    ("tokens", "mask", "pooled", "message"),
    [
        ((2, 4), torch.ones(2, 4, dtype=torch.bool), (2, 3), "batch, length, width"),
        ((2, 5, 4), torch.ones(2, 5), (2, 3), "boolean"),
        ((2, 5, 4), torch.ones(2, 4, dtype=torch.bool), (2, 3), r"\(2, 5\).*got \(2, 4\)"),
        ((2, 5, 4), torch.ones(2, 5, dtype=torch.bool), (1, 3), r"\(2, width\).*got \(1, 3\)"),
        ((2, 5, 4), torch.ones(2, 5, dtype=torch.bool), (2,), r"got \(2,\)"),
    ],
)
def test_conditioning_refuses_shapes_that_do_not_belong_together(tokens, mask, pooled, message):
    with pytest.raises(ValueError, match=message):
        TextConditioning(torch.zeros(tokens), mask, torch.zeros(pooled))


def test_concat_pads_to_the_longest_and_masks_the_padding():
    long, short = conditioning([5]), conditioning([2, 1])
    joined = TextConditioning.concat([long, short])
    assert joined.tokens.shape == (3, 5, 4)
    assert joined.mask.sum(1).tolist() == [5, 2, 1]
    assert torch.equal(joined.tokens[:1], long.tokens)
    assert torch.equal(joined.tokens[1:, :2], short.tokens)
    assert not joined.tokens[1:, 2:].any()
    assert torch.equal(joined.pooled, torch.cat([long.pooled, short.pooled]))


def test_concat_refuses_nothing_and_different_widths():
    with pytest.raises(ValueError, match="at least one"):
        TextConditioning.concat([])
    with pytest.raises(ValueError, match=r"widths \[\(4, 3\), \(8, 3\)\]"):
        TextConditioning.concat([conditioning([2]), conditioning([2], width=8)])


def test_expand_repeats_one_prompt_only():
    one = conditioning([3])
    four = one.expand(4)
    assert four.batch_size == 4
    assert torch.equal(four.tokens[3], one.tokens[0])
    assert one.expand(1) is one
    with pytest.raises(ValueError, match="holds 2 prompts, expected 1 or 3"):
        conditioning([3, 3]).expand(3)


def test_pad_refuses_to_cut():
    with pytest.raises(ValueError, match="5 tokens to 4"):
        conditioning([5]).pad(4)


def test_to_keeps_the_mask_boolean():
    moved = conditioning([3]).to(dtype=torch.bfloat16)
    assert (moved.tokens.dtype, moved.mask.dtype) == (torch.bfloat16, torch.bool)
    assert moved.pooled.dtype == torch.bfloat16


# templates


@pytest.mark.parametrize(
    ("kind", "length", "sha256", "crop", "max_tokens"),
    [
        (
            "video",
            669,
            "09efacd0c7584e236b605dfa1d8b76e87051f5d4ca99f79243e46cbec993c3bc",
            129,
            256,
        ),
        (
            "image",
            218,
            "04de998d6e835997641241c6d0ec3dc0fab9e8c70f87dccf98333822ccdff04f",
            41,
            512,
        ),
        (
            "edit",
            266,
            "8cd783f4ed62c3dd395209b429809f5fe5ef9fb9ef684bc4d17d611503757db9",
            55,
            None,
        ),
    ],
)
def test_templates_are_those_the_weights_were_trained_with(kind, length, sha256, crop, max_tokens):
    template = TEMPLATES[kind]
    assert len(template.text) == length
    assert hashlib.sha256(template.text.encode()).hexdigest() == sha256
    assert (template.crop, template.max_tokens) == (crop, max_tokens)


def test_every_task_has_its_template():
    assert dict(TASK_TEMPLATES) == {"t2v": "video", "i2v": "video", "t2i": "image", "i2i": "edit"}


def test_braces_in_a_prompt_are_plain_text():
    filled = TEMPLATES["image"].fill("a {} and {0} {name}")
    assert filled.endswith("user\na {} and {0} {name}<|im_end|>")


# nano


def test_tokenizer_reads_letters_and_digits_of_any_script_and_any_case():
    ids, mask = NanoTokenizer(VOCABULARY)(["A RED, circle!", "Красный круг 15_а", ""])
    assert ids.tolist() == [[2, 3, 4, 5, 0], [2, 8, 9, 10, 1], [2, 0, 0, 0, 0]]
    assert mask.sum(1).tolist() == [4, 5, 1]


def test_tokenizer_reads_both_spellings_of_an_accented_letter():
    tokenizer = NanoTokenizer(("\u0439",))  # й as one character
    assert tokenizer.unknown_words("\u0418\u0306") == []  # И and a combining breve


def test_unknown_words_are_listed_once_in_order():
    tokenizer = NanoTokenizer(VOCABULARY)
    assert tokenizer.unknown_words("a Blue circle, blue, moves диагонально") == [
        "blue",
        "диагонально",
    ]


def test_tokenizer_drops_words_after_max_len():
    ids, mask = NanoTokenizer(VOCABULARY, max_len=2)(["a red circle moves left"])
    assert ids.tolist() == [[2, 3, 4]]
    assert mask.all()


@pytest.mark.parametrize(
    ("vocabulary", "message"),
    [(("a", "a"), "1 repeated"), (("Red",), "lower-case"), (("very red",), "single")],
)
def test_tokenizer_refuses_words_that_could_never_match(vocabulary, message):
    with pytest.raises(ValueError, match=message):
        NanoTokenizer(vocabulary)


def test_nano_encoder_refuses_a_vocabulary_of_another_size():
    with pytest.raises(ValueError, match="vocab_size is 5, expected 11"):
        NanoTextEncoder(NanoTextConfig(vocab_size=5), VOCABULARY)


def test_nano_encoder_answers_the_protocol():
    encoder = nano_encoder()
    assert isinstance(encoder, TextEncoder)
    encoded = encoder.encode(["a red circle", "", "what is this"], task="i2v")
    assert encoded.tokens.shape == (3, 4, 32)
    assert encoded.mask.sum(1).tolist() == [4, 1, 4]
    assert torch.equal(encoded.pooled, encoded.tokens[:, 0])
    assert not encoded.tokens.requires_grad


def test_nano_batch_equals_singles():
    encoder = nano_encoder()
    prompts = ["a red circle moves left", "круг", ""]
    together = encoder.encode(prompts)
    alone = TextConditioning.concat([encoder.encode([prompt]) for prompt in prompts])
    assert torch.equal(together.mask, alone.mask)
    torch.testing.assert_close(together.tokens, alone.tokens, atol=1e-5, rtol=0)
    torch.testing.assert_close(together.pooled, alone.pooled, atol=1e-5, rtol=0)


def test_nano_encoder_tells_word_order():
    encoder = nano_encoder()
    one, other = encoder.encode(["red left circle", "circle left red"]).pooled
    assert (one - other).abs().max() > 1e-2


def test_every_weight_of_the_nano_encoder_learns():
    encoder = nano_encoder().train()
    ids, mask = encoder.tokenizer(["a red circle moves left 15", "what"])
    tokens, pooled = encoder(ids, mask)
    (tokens.square().mean() + pooled.sin().mean()).backward()
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in encoder.parameters())


def test_nano_file_holds_all_that_loading_needs(tmp_path):
    encoder = nano_encoder(num_layers=3, max_len=9)
    save_nano_text_encoder(tmp_path / "text.safetensors", encoder)
    loaded = load_nano_text_encoder(tmp_path / "text.safetensors")
    assert loaded.config == encoder.config
    assert loaded.tokenizer.vocabulary == VOCABULARY
    prompts = ["Красный круг", "a circle"]
    assert torch.equal(loaded.encode(prompts).tokens, encoder.encode(prompts).tokens)
    half = load_nano_text_encoder(tmp_path / "text.safetensors", dtype=torch.bfloat16)
    assert half.encode(["a"]).tokens.dtype == torch.bfloat16


def test_nano_loading_says_what_is_wrong_with_a_file(tmp_path):
    path = tmp_path / "text.safetensors"
    with pytest.raises(CheckpointError, match="not a readable"):
        load_nano_text_encoder(path)
    path.write_text("hello")
    with pytest.raises(CheckpointError, match="not a readable"):
        load_nano_text_encoder(path)
    save_file({"a": torch.zeros(1)}, path)
    with pytest.raises(CheckpointError, match="not a nano text encoder"):
        load_nano_text_encoder(path)
    encoder = nano_encoder()
    del encoder.layers[1]
    save_nano_text_encoder(path, encoder)
    with pytest.raises(CheckpointError, match="does not hold the weights"):
        load_nano_text_encoder(path)


def test_text_is_importable_without_transformers():
    script = (
        "import sys; sys.modules['transformers'] = None\n"
        "import kandinsky_core.text as text\n"
        "try: text.load_qwen_clip_folder('x')\n"
        "except ImportError as error: assert 'kandinsky-core[text]' in str(error), error\n"
        "else: raise SystemExit('no error')\n"
    )
    root = Path(__file__).resolve().parents[2]
    subprocess.run([sys.executable, "-c", script], check=True, cwd=root)
