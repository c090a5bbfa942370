"""CLIP: native nodes, weights in prompts, and the large encoders at tiny size."""

from __future__ import annotations

import logging
import weakref
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import pytest
import torch
import transformers
from safetensors.torch import save_file

from kandinsky_core.text import TEMPLATES, load_qwen_clip

QWEN_CONFIG = {
    "text_config": {
        "vocab_size": 152064,
        "hidden_size": 128,
        "intermediate_size": 256,
        "num_hidden_layers": 2,
        "num_attention_heads": 1,
        "num_key_value_heads": 1,
        "rms_norm_eps": 1e-6,
        "rope_theta": 1_000_000.0,
        "rope_scaling": {"type": "mrope", "mrope_section": [16, 24, 24]},
    },
    "vision_config": {
        "depth": 1,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_heads": 2,
        "out_hidden_size": 128,
        "fullatt_block_indexes": [0],
    },
}
CLIP_CONFIG = {
    "vocab_size": 49408,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 1,
    "projection_dim": 64,
    "hidden_act": "quick_gelu",
}
# what the host's Qwen is told of its size
LLAMA_KEYS = (
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
)


def test_native_text_encode_equals_ours(host, run, clip):
    text = "a red circle moves right"
    ((tokens, extra),) = run("K5_TextEncode", clip=clip, text=text, task="t2v")[0]
    ((native, native_extra),) = host.native.CLIPTextEncode().encode(clip, text)[0]
    assert torch.equal(tokens, native)
    assert torch.equal(extra["pooled_output"], native_extra["pooled_output"])
    assert "attention_mask" not in extra


def test_weights_leave_their_words_and_plain_brackets_stay(host, caplog):
    strip = host.part("nodes.host.prompt").strip_weights
    with caplog.at_level(logging.WARNING):
        assert strip("a (very (red:1.3) circle:0.8) moves") == "a very red circle moves"
        assert strip("(sky:.5) (3d:2.) (fog:-1.0)") == "sky 3d fog"
    assert "no effect" in caplog.text
    caplog.clear()
    for text in (
        "a circle (red)",
        r"\(at 12:30\)",
        "ratio 3:2",
        "(at noon: sharp)",
        "a clock shows (10:30)",
        "a wide frame (ratio 16:9)",
        "a verse (John 3:16)",
        "wide (aspect: 1.85)",
        "a car (price:25.50)",
        "a map (scale:50)",
    ):
        assert strip(text) == text
    assert not caplog.records


def test_unknown_words_are_named_in_the_log(run, clip, caplog):
    with caplog.at_level(logging.WARNING):
        run("K5_TextEncode", clip=clip, text="a red circle zorbs wildly", task="t2v")
    assert "zorbs, wildly" in caplog.text


@pytest.fixture(scope="module")
def large(host):
    """Tiny random Qwen2.5-VL and CLIP-L: files with ComfyUI's names, and the core's encoder."""
    torch.manual_seed(0)
    with torch.inference_mode(False):
        qwen = transformers.Qwen2_5_VLModel(transformers.Qwen2_5_VLConfig(**QWEN_CONFIG))
        clip = transformers.CLIPTextModel(transformers.CLIPTextConfig(**CLIP_CONFIG))
    folder = host.base / "models" / "text_encoders"
    weights = {
        name.replace("language_model.", "model."): tensor.detach().clone()
        for name, tensor in qwen.state_dict().items()
    }
    save_file(weights, folder / "whole.safetensors")
    # the host's vision tower has one size only
    text_only = {k: v for k, v in weights.items() if not k.startswith("visual.")}
    save_file(text_only, folder / "qwen.safetensors")
    clip_weights = {
        "text_model." + name.removeprefix("text_model."): tensor.detach().clone()
        for name, tensor in clip.state_dict().items()
    }
    save_file(clip_weights, folder / "clip.safetensors")
    return load_qwen_clip(
        folder / "whole.safetensors",
        folder / "clip.safetensors",
        qwen_tokenizer=host.path / "comfy/text_encoders/qwen25_tokenizer",
        clip_tokenizer=host.path / "comfy/sd1_tokenizer",
        qwen_config=QWEN_CONFIG,
        clip_config=CLIP_CONFIG,
    )


@pytest.fixture(scope="module")
def large_clip(run, large):
    """Return the same files through the loader node."""
    assert large.qwen is not None  # which also wrote the files
    names = {"qwen_name": "qwen.safetensors", "clip_name": "clip.safetensors"}
    return run("K5_LoadTextEncoders", **names, task="t2i")[0]


@pytest.fixture(scope="module")
def seeing_clip(run, large, large_clip, give_sight):
    """Another one, with a small vision tower."""
    assert large_clip.cond_stage_model.sees is False
    names = {"qwen_name": "qwen.safetensors", "clip_name": "clip.safetensors"}
    clip = run("K5_LoadTextEncoders", **names, task="t2i")[0]
    return give_sight(clip, large.qwen.visual.state_dict(), QWEN_CONFIG["vision_config"])


@pytest.mark.parametrize("task", ["t2v", "t2i"])
@pytest.mark.parametrize("text", ["A red fox (in snow) walks. Лиса идёт.", "", "word " * 600])
def test_large_encoders_equal_the_core(run, large, large_clip, task, text):
    expected = large.encode([text], task=task)
    ((tokens, extra),) = run("K5_TextEncode", clip=large_clip, text=text, task=task)[0]
    assert tokens.shape == expected.tokens.shape
    assert (tokens - expected.tokens).abs().max() < 1e-4
    assert (extra["pooled_output"] - expected.pooled).abs().max() < 1e-4


def test_the_host_may_ask_for_a_device_and_not_for_a_layer(run, large_clip, monkeypatch):
    asked = []
    for model in (large_clip.cond_stage_model.qwen, large_clip.cond_stage_model.clip):
        monkeypatch.setattr(model, "set_clip_options", asked.append)
    large_clip.cond_stage_model.set_clip_options({"layer": -2, "projected_pooled": True})
    assert asked == []
    large_clip.cond_stage_model.set_clip_options({"execution_device": "cpu", "layer": -2})
    assert asked == [{"execution_device": "cpu"}] * 2
    monkeypatch.undo()
    skipped = large_clip.clone()
    skipped.clip_layer(-2)
    texts = [
        run("K5_TextEncode", clip=clip, text="a fox", task="t2v")[0][0][0]
        for clip in (large_clip, skipped)
    ]
    assert torch.equal(*texts)


def test_native_text_encode_uses_the_loaders_task(host, large, large_clip):
    expected = large.encode(["a fox"], task="t2i")
    ((tokens, _),) = host.native.CLIPTextEncode().encode(large_clip, "a fox")[0]
    assert (tokens - expected.tokens).abs().max() < 1e-4


def test_an_edit_is_encoded_with_its_image_as_the_core_does(run, large, seeing_clip):
    image = torch.rand(1, 150, 330, 3, generator=torch.Generator().manual_seed(1))
    pixels = image.permute(0, 3, 1, 2) * 2 - 1
    expected = large.encode(["make it blue"], task="i2i", images=pixels)
    given = {"clip": seeing_clip, "text": "make it blue", "task": "i2i"}
    ((tokens, extra),) = run("K5_TextEncode", **given, image=image)[0]
    assert tokens.shape == expected.tokens.shape
    assert (tokens - expected.tokens).abs().max() < 1e-4
    assert (extra["pooled_output"] - expected.pooled).abs().max() < 1e-4
    ((mirrored, _),) = run("K5_TextEncode", **given, image=image.flip(2))[0]
    assert (mirrored - expected.tokens).abs().max() > 1e-2


@pytest.mark.parametrize("task", ["t2v", "i2i"])
def test_large_encoders_give_the_same_partially_loaded(run, seeing_clip, partially, task):
    image = torch.rand(1, 150, 330, 3, generator=torch.Generator().manual_seed(1))

    def encode():
        given = {"clip": seeing_clip, "text": "make it blue", "task": task}
        ((tokens, extra),) = run("K5_TextEncode", **given, image=image)[0]
        return tokens, extra["pooled_output"]

    whole = encode()
    partially()
    part = encode()
    partially.check(seeing_clip.patcher)
    left = partially.left["QwenClipModel"]
    for part_of in ("qwen.transformer.model", "qwen.transformer.visual", "clip.transformer"):
        assert any(name.startswith(part_of) for name in left)
    assert all(torch.equal(*pair) for pair in zip(part, whole, strict=True))


@pytest.mark.parametrize("task", ["t2v", "i2i"])
@pytest.mark.parametrize("tag", ["<|image_pad|>", "<|im_end|>"])
def test_a_prompt_cannot_hold_what_belongs_to_the_chat(host, run, large, large_clip, task, tag):
    image = torch.zeros(1, 64, 64, 3)
    given = {"clip": large_clip, "text": f"a {tag} fox", "task": task}
    with pytest.raises(ValueError, match=r"^prompt: found .* cannot hold; remove it") as by_node:
        run("K5_TextEncode", **given, image=image)
    assert tag in str(by_node.value)
    with pytest.raises(ValueError, match="prompt") as by_core:
        large.tokenize([f"a {tag} fox"], task)
    assert str(by_node.value) == str(by_core.value)
    with pytest.raises(ValueError, match="a prompt cannot hold"):  # native nodes ask the same
        host.native.CLIPTextEncode().encode(large_clip, f"a {tag} fox")


def test_an_edit_without_a_vision_tower_says_so(run, large_clip):
    with pytest.raises(ValueError, match=r"qwen\.safetensors: .*without its vision tower"):
        run(
            "K5_TextEncode",
            clip=large_clip,
            text="make it blue",
            task="i2i",
            image=torch.zeros(1, 64, 64, 3),
        )


# the host's own kandinsky5 CLIP, which 0.3.75 has not


@pytest.fixture(scope="module")
def native_clip(host, large_clip):
    """Return a CLIP with the parts, names and settings of the host's own kandinsky5 type, and the
    weights of `large_clip`: Qwen's states before the final norm, no limit of length, the video
    template."""
    sd1_clip = host.module("comfy.sd1_clip")
    qwen_image = host.module("comfy.text_encoders.qwen_image")
    architecture = host.module("comfy.text_encoders.llama").Qwen25_7BVLI
    ours = large_clip.cond_stage_model

    class LastHidden(sd1_clip.SDClipModel):
        def __init__(self, model_options, **options):
            super().__init__(
                layer="hidden",
                layer_idx=-1,
                textmodel_json_config={},
                special_tokens={"pad": 151643},
                layer_norm_hidden_state=False,
                model_class=architecture,
                enable_attention_masks=True,
                return_attention_masks=True,
                model_options=model_options,
                **options,
            )

    class Model(qwen_image.QwenImageTEModel):
        def __init__(self, **options):
            super(qwen_image.QwenImageTEModel, self).__init__(
                name="qwen25_7b", clip_model=LastHidden, **options
            )
            self.clip_l = sd1_clip.SDClipModel(return_projected_pooled=False, **options)

        def encode_token_weights(self, tokens):
            states, _, extra = super().encode_token_weights(tokens)
            return states, self.clip_l.encode_token_weights(tokens["l"])[1], extra

        def set_clip_options(self, options):
            super().set_clip_options(options)
            self.clip_l.set_clip_options(options)

        def reset_clip_options(self):
            super().reset_clip_options()
            self.clip_l.reset_clip_options()

    class Tokenizer(qwen_image.QwenImageTokenizer):
        def __init__(self, **options):
            super().__init__(**options)
            self.llama_template = TEMPLATES["video"].text
            self.clip_l = sd1_clip.SDTokenizer(**options)

        def tokenize_with_weights(self, text, return_word_ids=False, **options):
            tokens = super().tokenize_with_weights(text, return_word_ids, **options)
            tokens["l"] = self.clip_l.tokenize_with_weights(text, return_word_ids, **options)
            return tokens

    text = QWEN_CONFIG["text_config"]
    options = {
        "dtype": torch.float32,
        "qwen25_7b_model_config": {key: text[key] for key in text if key in LLAMA_KEYS},
        "clip_l_model_config": CLIP_CONFIG,
    }
    target = SimpleNamespace(clip=Model, tokenizer=Tokenizer, params={})
    clip = host.module("comfy.sd").CLIP(target, model_options=options)
    for part, weights in (("qwen25_7b", ours.qwen), ("clip_l", ours.clip)):
        state = weights.transformer.state_dict()
        state = {name: state[name] for name in state if not name.startswith("visual.")}
        missing, unexpected = getattr(clip.cond_stage_model, part).load_sd(state)
        assert all("visual." in name for name in missing) and not unexpected
    return clip


@pytest.mark.parametrize(
    ("task", "text"), [("t2v", "word " * 300), ("i2v", "Лиса"), ("t2i", "a fox")]
)
def test_a_native_clip_encodes_as_the_reference_here(run, large, native_clip, task, text, caplog):
    expected = large.encode([text], task=task)
    with caplog.at_level(logging.INFO):
        ((tokens, extra),) = run("K5_TextEncode", clip=native_clip, text=text, task=task)[0]
    assert tokens.shape == expected.tokens.shape
    assert (tokens - expected.tokens).abs().max() < 1e-4
    assert (extra["pooled_output"] - expected.pooled).abs().max() < 1e-4
    lines = [r for r in caplog.records if "own kandinsky5 encoder" in r.getMessage()]
    assert len(lines) == 1


def test_a_native_clip_stays_as_it_is_for_native_nodes(host, run, large, native_clip):
    encode = host.native.CLIPTextEncode().encode
    ((before, extra),) = encode(native_clip, "a fox")[0]
    run("K5_TextEncode", clip=native_clip, text="a fox", task="t2v")
    ((after, _),) = encode(native_clip, "a fox")[0]
    assert torch.equal(before, after)
    assert "k5_text" not in extra
    # what the log line says: the same tokens, but for the final norm
    norm = large.qwen.language_model.norm
    expected = large.encode(["a fox"], task="t2v").tokens
    assert (norm(before) - expected).abs().max() < 1e-4
    assert (before - expected).abs().max() > 0.1


@pytest.fixture
def native_tower(large, native_clip, small_tower):
    """Yield a small vision tower in the native CLIP, loaded."""
    weights, sizes = large.qwen.visual.state_dict(), QWEN_CONFIG["vision_config"]
    transformer = native_clip.cond_stage_model.qwen25_7b.transformer
    own, transformer.visual = transformer.visual, small_tower(weights, sizes)
    yield transformer.visual
    transformer.visual = own


EDIT = {"text": "make it blue", "task": "i2i"}


@pytest.mark.usefixtures("native_tower")
def test_a_native_clip_that_sees_encodes_an_edit_as_the_core_does(run, large, native_clip):
    image = torch.rand(1, 150, 330, 3, generator=torch.Generator().manual_seed(1))
    expected = large.encode([EDIT["text"]], task="i2i", images=image.movedim(3, 1) * 2 - 1)
    ((tokens, extra),) = run("K5_TextEncode", clip=native_clip, image=image, **EDIT)[0]
    assert tokens.shape == expected.tokens.shape
    assert (tokens - expected.tokens).abs().max() < 1e-4
    assert (extra["pooled_output"] - expected.pooled).abs().max() < 1e-4


@pytest.mark.parametrize("garbage", [0.0, 1.0, float("nan"), -3e38])
def test_a_native_clip_whose_tower_was_never_loaded_says_so(
    run, native_clip, native_tower, garbage
):
    weight = native_tower.blocks[0].attn.qkv.weight
    (weight.data if garbage in (0.0, 1.0) else weight.data[:1]).fill_(garbage)
    with pytest.raises(ValueError, match=r"clip: .*without its vision tower: .*load the whole"):
        run("K5_TextEncode", clip=native_clip, image=torch.zeros(1, 64, 64, 3), **EDIT)


def test_a_native_clip_from_a_file_of_text_alone_says_so(run, native_clip):
    with pytest.raises(ValueError, match=r"clip: .*without its vision tower: .*load the whole"):
        run("K5_TextEncode", clip=native_clip, image=torch.zeros(1, 64, 64, 3), **EDIT)


def test_a_native_clip_takes_the_triggers_of_loras(host, run, native_clip):
    lora = host.part("nodes.host.lora")
    both = lora.with_triggers(lora.with_triggers(native_clip, "red"), "star")
    encode = host.native.CLIPTextEncode().encode
    for text, whole in (("fox", "red star fox"), ("", "")):
        ((found, _),) = encode(both, text)[0]
        ((expected, _),) = encode(native_clip, whole)[0]
        assert torch.equal(found, expected)
        ((found, _),) = run("K5_TextEncode", clip=both, text=text, task="t2v")[0]
        ((expected, _),) = run("K5_TextEncode", clip=native_clip, text=whole, task="t2v")[0]
        assert torch.equal(found, expected)
    assert not native_clip.tokenizer_options
    assert both.tokenizer.clip_l is native_clip.tokenizer.clip_l


# conditioning of other nodes, and what the host does with ours


def test_text_of_other_nodes_is_taken_with_one_line_of_log(load_model, sample, prompts, caplog):
    model = load_model()
    with caplog.at_level(logging.WARNING):
        expected = sample(model)
    assert "encoded by another node" not in caplog.text
    foreign = [
        [[tokens, {key: value for key, value in extra.items() if key != "k5_text"}]]
        for ((tokens, extra),) in prompts
    ]
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            found = sample(model, positive=foreign[0], negative=foreign[1])
    assert torch.equal(found, expected)
    lines = [r.getMessage() for r in caplog.records if "encoded by another node" in r.getMessage()]
    assert len(lines) == 1 and "before the final norm" in lines[0]


def test_the_encoder_leaves_memory_when_it_is_needed(host, run, large_clip):
    management = host.module("comfy.model_management")

    def is_loaded():
        return any(each.model is large_clip.patcher for each in management.current_loaded_models)

    before = run("K5_TextEncode", clip=large_clip, text="a fox", task="t2v")[0][0][0]
    assert is_loaded()
    management.free_memory(1e30, large_clip.patcher.load_device)
    assert not is_loaded()
    after = run("K5_TextEncode", clip=large_clip, text="a fox", task="t2v")[0][0][0]
    assert torch.equal(before, after)


def test_the_host_encodes_a_prompt_once(host, monkeypatch):
    """Its cache goes by inputs; a node could spoil that."""
    classes = host.native.NODE_CLASS_MAPPINGS
    for node_id in ("K5_LoadTextEncoders", "K5_TextEncode", "K5_ExpandPrompt"):
        monkeypatch.setitem(classes, node_id, host.pack[node_id])
    end = type(
        "End",
        (),
        {
            "INPUT_TYPES": classmethod(lambda _: {"required": {"text": ("CONDITIONING",)}}),
            "RETURN_TYPES": (),
            "FUNCTION": "end",
            "OUTPUT_NODE": True,
            "end": lambda *_, **__: {},
        },
    )
    monkeypatch.setitem(classes, "End", end)
    expand = {"task": "t2v", "language": "English", "seed": 0, "max_tokens": 64, "temperature": 0.7}
    loader = {"qwen_name": "nano (bundled)", "clip_name": "(none)", "task": "t2v"}
    prompt = {
        "1": {"class_type": "K5_LoadTextEncoders", "inputs": loader},
        "2": {
            "class_type": "K5_ExpandPrompt",
            "inputs": {"clip": ["1", 0], "prompt": "a red circle moves right", **expand},
        },
        "3": {
            "class_type": "K5_TextEncode",
            "inputs": {"clip": ["1", 0], "text": ["2", 0], "task": "t2v"},
        },
        "4": {"class_type": "End", "inputs": {"text": ["3", 0]}},
    }
    server = SimpleNamespace(client_id=None, last_node_id=None, send_sync=lambda *_: None)
    executor = host.module("execution").PromptExecutor(server, cache_args={"lru": 0, "ram": 0})
    cached = []
    for number in range(2):
        # in a thread of its own: the browser tests leave an event loop running in this one
        with ThreadPoolExecutor(1) as loop:
            loop.submit(executor.execute, prompt, f"prompt {number}", {}, ["4"]).result()
        assert executor.success, executor.status_messages
        messages = dict(executor.status_messages)
        cached.append(set(messages["execution_cached"]["nodes"]))
    assert cached[0] == set()
    assert cached[1] >= {"1", "2", "3"}


def test_each_image_of_an_edit_gets_a_row(run, clip):
    given = {"clip": clip, "text": "a red circle", "task": "i2i"}
    ((tokens, extra),) = run("K5_TextEncode", **given, image=torch.rand(3, 32, 48, 3))[0]
    ((single, _),) = run("K5_TextEncode", **given, image=torch.rand(1, 32, 48, 3))[0]
    assert tokens.shape == (3, *single.shape[1:])
    assert extra["pooled_output"].shape[0] == 3
    assert extra["k5_seen"] == (3, 32, 48)


def encode_both(run, host, qwen_name, clip_name="clip.safetensors"):
    """Return the CLIP, and what the node and the core encode from the same files: (tokens,
    pooled)."""
    folder = host.base / "models" / "text_encoders"
    names = {"qwen_name": qwen_name, "clip_name": clip_name}
    (clip,) = run("K5_LoadTextEncoders", **names, task="t2v")
    ((tokens, extra),) = run("K5_TextEncode", clip=clip, text="a red fox", task="t2v")[0]
    core = load_qwen_clip(
        folder / qwen_name,
        folder / clip_name,
        qwen_tokenizer=host.path / "comfy/text_encoders/qwen25_tokenizer",
        clip_tokenizer=host.path / "comfy/sd1_tokenizer",
        qwen_config=QWEN_CONFIG,
        clip_config=CLIP_CONFIG,
        dtype=torch.float32,
    )
    expected = core.encode(["a red fox"])
    return clip, (tokens, extra["pooled_output"]), (expected.tokens, expected.pooled)


def test_sharded_qwen_is_one_entry_and_gives_the_same(host, run, large):
    folder = host.base / "models" / "text_encoders" / "qwen_in_two"
    folder.mkdir()
    state = {f"model.{n}": w for n, w in large.qwen.language_model.state_dict().items()}
    names = sorted(state)
    for number, half in enumerate((names[::2], names[1::2]), start=1):
        part = {name: state[name].clone() for name in half}
        save_file(part, folder / f"model-{number:05d}-of-00002.safetensors")
    (listed, *_) = host.pack["K5_LoadTextEncoders"].define_schema().inputs
    assert "qwen_in_two" in listed.options
    _, (tokens, _), (expected, _) = encode_both(run, host, "qwen_in_two")
    assert (tokens - expected).abs().max() < 1e-4


def test_scaled_fp8_clip_is_unpacked(host, run, large):
    folder = host.base / "models" / "text_encoders"
    stored = {}
    for name, weight in large.clip.state_dict().items():
        name = "text_model." + name.removeprefix("text_model.")
        stored[name] = weight.clone()
        if name.endswith(("proj.weight", "fc1.weight", "fc2.weight")):
            scale = weight.abs().max() / 400
            stored[name] = (weight / scale).to(torch.float8_e4m3fn)
            stored[name.removesuffix(".weight") + ".weight_scale"] = scale
    save_file(stored, folder / "clip_scaled.safetensors")
    _, (_, pooled), (_, expected) = encode_both(
        run, host, "qwen.safetensors", "clip_scaled.safetensors"
    )
    assert (pooled - expected).norm() < 0.02 * expected.norm()


@pytest.mark.parametrize("prefix", ["model.language_model.", "language_model.", "", "model."])
def test_every_layout_of_qwen_that_the_core_reads_is_read(run, host, large, prefix):
    language = large.qwen.language_model.state_dict()
    stored = {f"{prefix}{k}": v.clone() for k, v in language.items()}
    tower = "model.visual." if prefix == "model.language_model." else "visual."
    whole = stored | {f"{tower}{k}": v.clone() for k, v in large.qwen.visual.state_dict().items()}
    folder = host.base / "models" / "text_encoders"
    save_file(stored | {"lm_head.weight": torch.zeros(2, 2)}, folder / "qwen_layout.safetensors")
    _, (tokens, _), (expected, _) = encode_both(run, host, "qwen_layout.safetensors")
    assert (tokens - expected).norm() < 1e-5 * expected.norm()
    save_file(whole, folder / "whole_layout.safetensors")
    weights = host.part("nodes.host.text.weights").read_qwen_clip(
        folder / "whole_layout.safetensors", folder / "clip.safetensors"
    )
    assert weights.sees


@pytest.mark.parametrize("prefix", ["", "text_model.", "clip_l.transformer.text_model."])
def test_every_layout_of_clip_that_the_core_reads_is_read(run, host, large, prefix):
    stored = {
        prefix + name.removeprefix("text_model."): weight.clone()
        for name, weight in large.clip.state_dict().items()
    }
    folder = host.base / "models" / "text_encoders"
    save_file(stored | {"logit_scale": torch.ones(())}, folder / "clip_layout.safetensors")
    _, (_, pooled), (_, expected) = encode_both(
        run, host, "qwen.safetensors", "clip_layout.safetensors"
    )
    assert (pooled - expected).norm() < 1e-5 * expected.norm()


@pytest.mark.parametrize("suffix", [".scale_weight", ".weight_scale"])
def test_scaled_fp8_qwen_equals_the_core(run, host, large, caplog, partially, suffix):
    folder = host.base / "models" / "text_encoders"
    stored = {}
    for name, weight in large.qwen.language_model.state_dict().items():
        name = f"model.{name}"
        stored[name] = weight.bfloat16()
        if weight.ndim == 2 and "embed" not in name:
            scale = weight.abs().max() / 400
            stored[name] = (weight / scale).to(torch.float8_e4m3fn)
            stored[name.removesuffix(".weight") + suffix] = scale
        elif name.endswith(".bias"):
            stored[name] = torch.linspace(-1, 1, len(weight)).bfloat16()
    if suffix == ".scale_weight":
        stored["scaled_fp8"] = torch.zeros(2, dtype=torch.float8_e4m3fn)
    save_file(stored, folder / "qwen_scaled.safetensors")
    with caplog.at_level(logging.INFO):
        clip, (tokens, _), (expected, _) = encode_both(run, host, "qwen_scaled.safetensors")
    assert "is unpacked" not in caplog.text
    layer = clip.cond_stage_model.qwen.transformer.model.layers[0].self_attn.q_proj
    assert (layer.weight.dtype, layer.bias.dtype) == (torch.float8_e4m3fn, torch.bfloat16)
    assert (tokens - expected).norm() < 0.02 * expected.norm()
    partially()
    ((part, _),) = run("K5_TextEncode", clip=clip, text="a red fox", task="t2v")[0]
    partially.check(clip.patcher)
    assert torch.equal(part, tokens)


@pytest.mark.parametrize("norms", [torch.bfloat16, torch.float8_e4m3fn])
def test_plain_fp8_qwen_stays_and_equals_the_core(run, host, large, norms):
    folder = host.base / "models" / "text_encoders"
    stored = {
        f"model.{name}": weight.to(torch.float8_e4m3fn if weight.ndim == 2 else norms)
        for name, weight in large.qwen.language_model.state_dict().items()
    }
    save_file(stored, folder / "qwen_fp8.safetensors")
    clip, (tokens, _), (expected, _) = encode_both(run, host, "qwen_fp8.safetensors")
    model = clip.cond_stage_model.qwen.transformer.model
    layer = model.layers[0]
    assert layer.mlp.up_proj.weight.dtype == torch.float8_e4m3fn
    assert layer.self_attn.q_proj.bias.dtype == layer.input_layernorm.weight.dtype == norms
    assert (tokens - expected).norm() < 0.02 * expected.norm()


@pytest.fixture
def write_language_model(large, write_gguf):
    """Write what the GGUF file of Qwen holds: all but the vision tower."""
    gguf = pytest.importorskip("gguf")
    table = gguf.get_tensor_name_map(gguf.MODEL_ARCH.QWEN2VL, 2)
    stored = {
        table.get_name(f"model.{name}", (".weight", ".bias")): weight
        for name, weight in large.qwen.language_model.state_dict().items()
    }

    def write(path, kind):
        path.parent.mkdir(exist_ok=True)
        return write_gguf(path, stored, kind, architecture="qwen2vl")

    return write


def test_gguf_qwen_equals_the_core_and_cannot_see(
    run, host, write_language_model, caplog, partially
):
    path = host.base / "models" / "text_encoders" / "qwen-Q8_0.gguf"
    write_language_model(path, "Q8_0")
    with caplog.at_level(logging.INFO):
        clip, (tokens, _), (expected, _) = encode_both(run, host, path.name)
    assert "is unpacked to" not in caplog.text
    model = clip.cond_stage_model.qwen.transformer.model
    assert model.layers[0].mlp.up_proj.packing == model.embed_tokens.packing == "Q8_0"
    assert clip.patcher.model_size() == sum(
        tensor.nbytes for tensor in clip.cond_stage_model.state_dict().values()
    )
    assert (tokens - expected).norm() < 0.02 * expected.norm()
    partially()
    ((part, _),) = run("K5_TextEncode", clip=clip, text="a red fox", task="t2v")[0]
    partially.check(clip.patcher)
    assert torch.equal(part, tokens)
    partially.end()
    with pytest.raises(ValueError, match=r"clip: the text encoder qwen-Q8_0\.gguf is in memory as"):
        clip.get_sd()  # what CLIPSave asks for
    image = torch.zeros(1, 64, 64, 3)
    with pytest.raises(ValueError, match=r"qwen_name: .*without its vision tower.*mmproj"):
        run("K5_TextEncode", clip=clip, text="make it blue", task="i2i", image=image)


def test_a_gguf_qwen_is_read_layer_by_layer(run, host, write_language_model, monkeypatch):
    """Not all at once beside the model, which would take its memory twice."""
    path = host.base / "models" / "text_encoders" / "qwen-Q8_0-once.gguf"
    write_language_model(path, "Q8_0")
    files = host.part("kandinsky_core.weights").WeightFiles
    read, alive, held = files.read, [], []

    def watched(self, name, dtype=None):
        tensor = read(self, name, dtype)
        alive.append(weakref.ref(tensor, alive.remove))
        held.append(len(alive))
        return tensor

    monkeypatch.setattr(files, "read", watched)
    run("K5_LoadTextEncoders", qwen_name=path.name, clip_name="clip.safetensors", task="t2v")
    assert len(held) > 40
    assert max(held) == 2  # a weight and its bias; packed matrices are the file itself


@pytest.fixture
def small_towers(host, monkeypatch):
    """Have the host build vision towers of this file's size; it knows one size only."""
    module = host.module("comfy.text_encoders.qwen_vl")
    whole = module.Qwen2VLVisionTransformer
    sizes = QWEN_CONFIG["vision_config"]

    def build(**options):
        small = {name: sizes[name] for name in ("hidden_size", "intermediate_size", "num_heads")}
        tower = whole(**(options | small | {"num_layers": sizes["depth"]}))
        tower.fullatt_block_indexes = sizes["fullatt_block_indexes"]
        return tower

    monkeypatch.setattr(module, "Qwen2VLVisionTransformer", build)


@pytest.fixture
def tower(large):
    """Return the weights of the vision tower, by transformers' names."""
    return {f"visual.{name}": weight for name, weight in large.qwen.visual.state_dict().items()}


@pytest.mark.parametrize(("kind", "error"), [("F32", 1e-5), ("F16", 2e-3), ("Q8_0", 2e-2)])
@pytest.mark.usefixtures("small_towers")
def test_gguf_qwen_sees_through_the_mmproj_file_beside_it(
    run, host, large, tower, write_language_model, write_mmproj, caplog, kind, error
):
    folder = host.base / "models" / "text_encoders" / f"pair_{kind}"
    write_language_model(folder / "qwen.gguf", kind)
    write_mmproj(folder / "mmproj.gguf", tower, kind)
    names = {"qwen_name": f"{folder.name}/qwen.gguf", "clip_name": "clip.safetensors"}
    with caplog.at_level(logging.INFO):
        clip = run("K5_LoadTextEncoders", **names, task="i2i")[0]
    assert "qwen.gguf sees through mmproj.gguf" in caplog.text
    image = torch.rand(1, 120, 180, 3, generator=torch.Generator().manual_seed(2))
    pixels = image.movedim(3, 1) * 2 - 1
    expected = large.encode(["make it blue"], task="i2i", images=pixels).tokens
    given = {"clip": clip, "text": "make it blue", "task": "i2i"}
    ((tokens, _),) = run("K5_TextEncode", **given, image=image)[0]
    assert tokens.shape == expected.shape
    assert (tokens - expected).norm() <= error * expected.norm()
    ((mirrored, _),) = run("K5_TextEncode", **given, image=image.flip(2))[0]
    assert (mirrored - expected).norm() > 3 * error * expected.norm()


@pytest.mark.parametrize(
    ("size", "value", "said"),
    [("intermediate_size", 96, "has weights of other shapes"), ("depth", 2, "lacks 12 of the")],
)
@pytest.mark.usefixtures("small_towers")
def test_a_vision_tower_that_the_host_cannot_take_is_named(
    run, host, tower, write_language_model, write_mmproj, monkeypatch, size, value, said
):
    folder = host.base / "models" / "text_encoders" / f"unlike_{size}"
    write_language_model(folder / "qwen.gguf", "F16")
    write_mmproj(folder / "mmproj.gguf", tower)
    names = {"qwen_name": f"{folder.name}/qwen.gguf", "clip_name": "clip.safetensors"}
    monkeypatch.setitem(QWEN_CONFIG["vision_config"], size, value)
    with pytest.raises(ValueError, match=rf"qwen\.gguf with mmproj\.gguf {said}"):
        run("K5_LoadTextEncoders", **names, task="i2i")


def test_an_mmproj_file_that_comes_later_loads_the_encoder_anew(host):
    node = host.pack["K5_LoadTextEncoders"]
    folder = host.base / "models" / "text_encoders" / "later"
    folder.mkdir()
    (folder / "qwen.gguf").touch()
    before = node.fingerprint_inputs(qwen_name="later/qwen.gguf", clip_name="c", task="t2v")
    nano = node.fingerprint_inputs(qwen_name="nano (bundled)", clip_name="(none)", task="t2v")
    (folder / "mmproj-f16.gguf").touch()
    assert node.fingerprint_inputs(qwen_name="later/qwen.gguf") != before
    assert node.fingerprint_inputs(qwen_name="nano (bundled)") == nano
    assert node.fingerprint_inputs(qwen_name="gone.gguf") == "gone.gguf"


def test_a_vision_tower_is_no_text_encoder(run, host, tower, write_mmproj):
    folder = host.base / "models" / "text_encoders" / "alone"
    folder.mkdir()
    write_mmproj(folder / "mmproj.gguf", tower)
    names = {"qwen_name": "alone/mmproj.gguf", "clip_name": "clip.safetensors"}
    with pytest.raises(
        ValueError, match=r"the vision tower \(mmproj\) of Qwen2\.5-VL: give the lan"
    ):
        run("K5_LoadTextEncoders", **names, task="i2i")
