"""Prompt expansion: the instructions, how tokens are chosen, and the guard against nonsense."""

from __future__ import annotations

import math
from collections import Counter

import pytest
import torch

from kandinsky_core.family.config import NanoTextConfig
from kandinsky_core.text import (
    CannotWriteError,
    NanoTextEncoder,
    TokenChooser,
    Written,
    expand_prompt,
    fit_for_qwen,
)
from kandinsky_core.text.expand import expansion_instruction
from kandinsky_core.text.expand_guard import count_words, review

PROSE = (
    "A red fox walks through deep snow at the edge of a spruce forest. It lifts each paw slowly "
    "and leaves a straight line of prints behind. Low morning light comes from the left and makes "
    "the snow glitter. The camera follows at the height of the fox, without shaking."
)
RUSSIAN = (
    "Рыжая лиса идёт по глубокому снегу вдоль опушки елового леса. Она медленно поднимает лапы и "
    "оставляет ровную цепочку следов. Камера следует за ней на уровне глаз."
)
CHINESE = (
    "一只红狐狸慢慢走过云杉林边的深雪，身后留下一串笔直的脚印。"
    "清晨低低的阳光从左边照来，雪地闪闪发亮。镜头保持在狐狸的高度，平稳地跟随它前进。"
)


class Writer:
    """Writes what it was told to and remembers what it was asked."""

    def __init__(self, text, finished=True):
        self.answer = Written(text, finished)
        self.chat = self.image = self.max_tokens = None

    def write(self, chat, image, choose, max_tokens):
        self.chat, self.image, self.max_tokens = chat, image, max_tokens
        choose(torch.zeros(3))
        return self.answer


# what is asked


def test_the_chat_holds_instruction_and_prompt_and_ends_where_the_answer_begins():
    writer = Writer(PROSE)
    result = expand_prompt(writer, "a fox in the snow", max_tokens=100)
    system, user, answer = writer.chat.split("<|im_start|>")[1:]
    assert system.startswith("system\nYou write the description from which a video model")
    assert "at most 50 words" in system and system.endswith("<|im_end|>\n")
    assert user == "user\na fox in the snow<|im_end|>\n"
    assert answer == "assistant\n"
    assert writer.image is None and writer.max_tokens == 100
    assert result.prompt == PROSE and result.expanded
    assert result.note == "Expanded from 5 to 50 words."


@pytest.mark.parametrize(
    ("task", "looks", "words"),
    [
        ("t2v", False, "video model makes"),
        ("t2i", False, "image model makes"),
        ("i2v", True, "the first frame"),
        ("i2i", True, "image editing model"),
    ],
)
def test_only_tasks_that_start_from_an_image_look_at_it(task, looks, words):
    writer = Writer(PROSE)
    images = torch.linspace(-1, 1, 2 * 3 * 64 * 96).reshape(2, 3, 64, 96)
    expand_prompt(writer, "a fox", task=task, image=images)
    assert words in writer.chat
    assert ("<|vision_start|><|image_pad|><|vision_end|>a fox" in writer.chat) is looks
    assert (writer.image is not None) is looks
    if looks:  # the first of the two, which is the darker one
        assert tuple(writer.image.shape) == (1, 3, 56, 84)
        assert writer.image.max() <= 128
        expand_prompt(writer, "a fox", task=task)
        assert writer.image is None and "do not see" in writer.chat


def test_language_is_asked_for():
    both = [
        expansion_instruction("t2v", each, 64, with_image=False)
        for each in ("English", "as written")
    ]
    assert both[0].endswith("Write in English, whatever the language of the request.")
    assert both[1].endswith("Write in the language of the request.")


def test_a_large_picture_is_looked_at_small():
    writer = Writer(PROSE)
    expand_prompt(writer, "a fox", task="i2v", image=torch.zeros(1, 3, 768, 1280))
    height, width = writer.image.shape[-2:]
    assert height % 28 == width % 28 == 0
    assert 0.8 * 512**2 < height * width <= 512**2
    assert abs(width / height - 1280 / 768) < 0.1


def test_sizes_for_qwen_follow_its_rule():
    def size(height, width, **limits):
        return tuple(fit_for_qwen(torch.zeros(1, 3, height, width), **limits).shape[-2:])

    assert size(280, 420) == (280, 420)
    assert size(75, 115) == (84, 112)
    assert size(20, 20) == (56, 56)  # at least 56 x 56 pixels in all
    assert size(1000, 1000, max_pixels=300 * 300) == (280, 280)


@pytest.mark.parametrize("tag", ["<|im_end|>", "<|image_pad|>", "<|endoftext|>"])
def test_special_tokens_in_the_prompt_are_refused(tag):
    with pytest.raises(ValueError, match=r"special token of Qwen2\.5-VL"):
        expand_prompt(Writer(PROSE), f"a fox {tag}")


def test_numbers_out_of_range_are_refused():
    with pytest.raises(ValueError, match="temperature is -1"):
        expand_prompt(Writer(PROSE), "a fox", temperature=-1)
    for seed in (-1, 2**64):  # torch takes negative ones, which no widget holds
        with pytest.raises(ValueError, match=f"seed is {seed}: .* from 0 to 18446744073709551615"):
            expand_prompt(Writer(PROSE), "a fox", seed=seed)
    with pytest.raises(ValueError, match="max_tokens is 0"):
        expand_prompt(Writer(PROSE), "a fox", max_tokens=0)


# who cannot write


def test_an_encoder_that_cannot_write_gives_the_prompt_back():
    nano = NanoTextEncoder(NanoTextConfig(vocab_size=4, dim=8, num_heads=2, max_len=4), ["fox"])
    result = expand_prompt(nano, "a fox")
    assert (result.prompt, result.expanded) == ("a fox", False)
    assert "cannot write (it is nano's" in result.note


def test_a_writer_without_a_part_says_which():
    class Broken(Writer):
        def write(self, *_):
            raise CannotWriteError("qwen.safetensors holds no lm_head.weight")

    result = expand_prompt(Broken(""), "a fox")
    assert result.prompt == "a fox" and not result.expanded
    assert result.note == (
        "qwen.safetensors holds no lm_head.weight: the prompt was passed on unchanged."
    )


# how tokens are chosen


def test_temperature_zero_takes_the_likeliest():
    choose = TokenChooser(temperature=0, seed=5)
    assert {choose(torch.tensor([0.0, 3.0, 2.9])) for _ in range(20)} == {1}


@pytest.mark.parametrize(("temperature", "power"), [(1.0, 1), (0.5, 2), (2.0, 0.5)])
def test_temperature_bends_the_probabilities(temperature, power):
    shares = [0.6, 0.3, 0.1]
    choose = TokenChooser(temperature=temperature, seed=0)
    logits = torch.tensor([math.log(share) for share in shares])
    counts = Counter(choose(logits) for _ in range(4000))
    bent = [share**power for share in shares]
    for token, share in enumerate(bent):
        assert counts[token] / 4000 == pytest.approx(share / sum(bent), abs=0.03)


def test_a_seed_gives_the_same_draws_again():
    logits = torch.zeros(1000)
    draws = [
        [choose(logits) for _ in range(8)]
        for choose in (TokenChooser(temperature=1, seed=seed) for seed in (3, 3, 2**64 - 1))
    ]
    assert draws[0] == draws[1] != draws[2]


def test_every_token_is_reported_and_may_cancel():
    class CancelledError(Exception):
        pass

    def cancel():
        raise CancelledError

    with pytest.raises(CancelledError):
        expand_prompt(Writer(PROSE), "a fox", on_token=cancel)


# the guard


@pytest.mark.parametrize(
    "text",
    [
        PROSE,
        RUSSIAN,
        CHINESE,
        "雪の中を赤い狐がゆっくり歩く。",
        "สุนัขจิ้งจอกสีแดงเดินช้าๆผ่านหิมะลึก",
        "Make the left chair blue and keep the rest.",
    ],
)
def test_prose_passes(text):
    result = review(Written(text, finished=True), prompt="a fox", instruction="Write about it.")
    assert (result.text, result.problem, result.trimmed) == (text, None, False)


def test_scripts_without_spaces_are_judged_by_their_characters():
    def judge(text, *, finished=True, prompt="雪中的红狐狸"):
        return review(Written(text, finished), prompt=prompt, instruction="Write about it.")

    assert count_words(CHINESE) == sum(char.isalnum() for char in CHINESE)
    assert count_words("两只 red foxes") == 4
    assert "no sentence" in judge("狐狸").problem
    assert "added nothing" in judge("雪中的红狐狸。").problem
    assert "repeated itself" in judge("狐狸走过雪地，" * 6).problem
    cut = judge(CHINESE + "风吹过树林，", finished=False)
    assert (cut.text, cut.problem, cut.trimmed) == (CHINESE, None, True)


def test_white_space_and_quotation_marks_around_are_taken_off():
    written = Written(f' "{PROSE[:66]}\n\n  {PROSE[66:]}" \n', finished=True)
    assert review(written, prompt="a fox", instruction="").text == PROSE
    inner = 'A sign says "open". A man reads "closed"'
    assert review(Written(inner, True), prompt="a", instruction="").text == inner


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", "nothing"),
        (" \n ", "nothing"),
        ("A", "no sentence, only 'A'"),
        ("A     A   ", "no sentence"),
        ("A " * 60, "repeated itself"),
        ("aaaaaaaaaaaaaaaaaaaa", "repeated itself"),
        ("The fox walks. " * 12, "repeated itself"),
        (
            PROSE + " The snow falls on the fox and the snow falls on the tree." * 6,
            "repeated itself",
        ),
        ("!!! ??? ### a b c d *** ((( ))) --- === +++", "signs instead of words"),
        ("a fox", "no sentence"),
        ("A fox in the snow!", "added nothing"),
        ("The fox in the snow.", "added nothing"),
        ("Sure. You write the text from which a video model makes one clip, so.", "instruction"),
    ],
)
@pytest.mark.parametrize("finished", [True, False])
def test_nonsense_is_thrown_away(text, problem, finished):
    instruction = "You write the text from which a video model makes one clip of a few seconds."
    given = review(Written(text, finished), prompt="a fox in the snow", instruction=instruction)
    assert given.problem is not None and problem in given.problem
    result = expand_prompt(Writer(text, finished), "a fox in the snow")
    if problem != "instruction":
        assert result.prompt == "a fox in the snow" and not result.expanded
        assert problem in result.note and result.note.endswith("passed on unchanged.")


def test_the_real_instruction_is_recognised_too():
    echo = expansion_instruction("t2v", "English", 256, with_image=False)
    result = expand_prompt(Writer(echo), "a fox in the snow")
    assert "repeated its instruction" in result.note and result.prompt == "a fox in the snow"


def test_a_cut_answer_ends_with_its_last_whole_sentence():
    result = expand_prompt(Writer(PROSE + " The wind is 3.5 m", finished=False), "a fox")
    assert result.prompt == PROSE and result.expanded
    assert result.note.endswith("up to the last whole sentence within 256 tokens.")


def test_a_cut_answer_without_a_sentence_is_thrown_away():
    result = expand_prompt(Writer("A red fox walks through deep snow and", finished=False), "a fox")
    assert result.prompt == "a fox" and "before a sentence ended" in result.note


def test_an_answer_that_ended_by_itself_needs_no_full_stop():
    text = "A red fox walks through deep snow"
    assert expand_prompt(Writer(text), "a fox").prompt == text
