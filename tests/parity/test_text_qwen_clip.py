"""Qwen2.5-VL and CLIP conditioning against transformers and diffusers 0.40.0.

Weights are tiny and random, tokenizers are the real ones that ComfyUI ships. Where diffusers
departs from the official code the departure is switched off by name: the edit template, the halving
of the edit image, and the way a long prompt is cut (there, only the official way is tested).
"""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from einops import rearrange
from safetensors.torch import save_file

from kandinsky_core.errors import CheckpointError
from kandinsky_core.family.settings import VIDEO_NEGATIVE_PROMPT
from kandinsky_core.text import CannotWriteError, load_qwen_clip, load_qwen_clip_folder
from kandinsky_core.text.qwen_clip import halve_images
from kandinsky_core.text.qwen_clip_load import CLIP_L_CONFIG, QWEN_7B_CONFIG
from kandinsky_core.text.templates import TEMPLATES

diffusers = pytest.importorskip("diffusers")
transformers = pytest.importorskip("transformers")

QWEN_TINY = {
    "text_config": {
        "vocab_size": 151936,
        "hidden_size": 16,
        "intermediate_size": 24,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "rms_norm_eps": 1e-6,
        "rope_scaling": {"type": "mrope", "mrope_section": [1, 1, 2]},
    },
    "vision_config": {
        "depth": 2,
        "hidden_size": 16,
        "intermediate_size": 24,
        "num_heads": 2,
        "out_hidden_size": 16,
        "fullatt_block_indexes": [1],
    },
}
CLIP_TINY = {**CLIP_L_CONFIG, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2}
CLIP_TINY |= {"num_attention_heads": 2}

PROMPTS = [
    "A cat, sitting on a red chair.",
    "",
    "Кот медленно идёт по комнате; камера следует за ним 🙂",
]
LONG_PROMPT = "a very long walk through the forest " * 100


@pytest.fixture(scope="module")
def reference():
    """Return transformers' own models with random weights, norms and biases included."""
    torch.manual_seed(0)
    qwen = transformers.Qwen2_5_VLForConditionalGeneration(
        transformers.Qwen2_5_VLConfig(**QWEN_TINY)
    )
    clip = transformers.CLIPTextModel(transformers.CLIPTextConfig(**CLIP_TINY))
    for model in (qwen.eval(), clip.eval()):
        for name, parameter in model.named_parameters():
            spread, centre = (0.2, 1.0) if "norm" in name or "ln_q" in name else (0.2, 0.0)
            torch.nn.init.normal_(parameter, std=spread, mean=centre)
    return qwen, clip


@pytest.fixture(scope="module")
def files(reference, tmp_path_factory) -> tuple[Path, Path]:
    """Return the same weights as two single files."""
    folder = tmp_path_factory.mktemp("text")
    qwen, clip = reference
    save_file(qwen.state_dict(), folder / "qwen.safetensors")
    save_file(clip.state_dict(), folder / "clip.safetensors")
    return folder / "qwen.safetensors", folder / "clip.safetensors"


@pytest.fixture(scope="module")
def load(files, tokenizer_folders):
    def load_tiny(qwen=files[0], clip=files[1], **options):
        return load_qwen_clip(
            qwen,
            clip,
            **tokenizer_folders,
            **{"qwen_config": QWEN_TINY, "clip_config": CLIP_TINY, **options},
        )

    return load_tiny


@pytest.fixture(scope="module")
def encoder(load):
    return load()


@pytest.fixture(scope="module")
def pipeline(reference, encoder):
    """Return diffusers' pipeline for a class name, with nothing but its text encoders."""
    qwen, clip = reference
    processor = transformers.Qwen2_5_VLProcessor(
        transformers.Qwen2VLImageProcessor(max_pixels=12845056),
        encoder.qwen_tokenizer,
        transformers.Qwen2VLVideoProcessor(),
    )

    def build(name):
        return getattr(diffusers, name)(
            transformer=None,
            vae=None,
            text_encoder=qwen,
            tokenizer=processor,
            text_encoder_2=clip,
            tokenizer_2=encoder.clip_tokenizer,
            scheduler=None,
        )

    return build


def assert_same(ours, embeds, cu_seqlens, pooled):
    """Compare real tokens one by one; diffusers' padding holds arbitrary values."""
    lengths = cu_seqlens.diff().tolist()
    assert ours.mask.sum(1).tolist() == lengths
    for row, (tokens, length) in enumerate(zip(embeds, lengths, strict=True)):
        torch.testing.assert_close(ours.tokens[row, :length], tokens[:length], atol=1e-5, rtol=0)
    torch.testing.assert_close(ours.pooled, pooled, atol=1e-5, rtol=0)


TEXT_PIPELINES = [
    ("t2v", "Kandinsky5T2VPipeline"),
    ("i2v", "Kandinsky5I2VPipeline"),
    ("t2i", "Kandinsky5T2IPipeline"),
]


@pytest.mark.parametrize(("task", "name"), TEXT_PIPELINES)
def test_a_batch_of_prompts_is_encoded_as_diffusers_does(task, name, encoder, pipeline):
    pipe = pipeline(name)
    with torch.no_grad():
        embeds, cu_seqlens = pipe._encode_prompt_qwen(PROMPTS, device="cpu")
        pooled = pipe._encode_prompt_clip(PROMPTS, device="cpu")
    ours = encoder.encode(PROMPTS, task=task, images=torch.zeros(1, 3, 64, 64))
    assert ours.tokens.std() > 0.3
    assert_same(ours, embeds, cu_seqlens, pooled)


@pytest.mark.parametrize(("task", "name"), TEXT_PIPELINES)
def test_templates_and_crops_are_those_of_diffusers(task, name, encoder, pipeline):
    pipe = pipeline(name)
    template = TEMPLATES["image" if task == "t2i" else "video"]
    assert template.text == pipe.prompt_template
    assert template.crop == pipe.prompt_template_encode_start_idx
    # and the crop is the number of tokens before the prompt
    before_prompt = encoder.qwen_tokenizer(template.text.split("{}")[0])["input_ids"]
    assert len(before_prompt) == template.crop


def test_the_edit_template_differs_from_that_of_diffusers_by_two_newlines(encoder, pipeline):
    theirs = pipeline("Kandinsky5I2IPipeline").prompt_template
    ours = TEMPLATES["edit"].text + "<|vision_start|><|image_pad|><|vision_end|><|im_end|>"
    assert ours.replace("<|im_end|>\n", "<|im_end|>", 1).replace("user\n", "user") == theirs
    before_prompt = encoder.qwen_tokenizer(TEMPLATES["edit"].text.split("{}")[0])["input_ids"]
    assert len(before_prompt) == 52  # three less than are cropped


def test_an_edit_is_encoded_with_its_image_as_diffusers_does(encoder, pipeline):
    image_module = pytest.importorskip("PIL.Image")
    pipe = pipeline("Kandinsky5I2IPipeline")
    pipe.prompt_template = (
        TEMPLATES["edit"].text + "<|vision_start|><|image_pad|><|vision_end|><|im_end|>"
    )
    images = torch.rand(2, 3, 150, 230, generator=torch.Generator().manual_seed(1)) * 2 - 1

    class HalvedAsOfficially:
        """Stands in for a PIL image, whose own resize is another filter than the official one."""

        def __init__(self, pixels):
            self.size = (230, 150)
            self.half = rearrange(halve_images(pixels[None])[0], "c h w -> h w c")

        def resize(self, size):
            assert size == (115, 75)
            return image_module.fromarray(self.half.numpy())

    prompts = ["make the chair blue", "Добавь шляпу и убери стол с кухни"]
    with torch.no_grad():
        embeds, cu_seqlens = pipe._encode_prompt_qwen(
            prompts, image=[HalvedAsOfficially(image) for image in images], device="cpu"
        )
        pooled = pipe._encode_prompt_clip(prompts, device="cpu")
    ours = encoder.encode(prompts, task="i2i", images=images)
    assert_same(ours, embeds, cu_seqlens, pooled)
    assert not torch.equal(ours.tokens[0, 4:8], encoder.encode(prompts, task="t2i").tokens[0, 4:8])

    # the image changes what is encoded, and one image may serve a positive and a negative prompt
    shared = encoder.encode(prompts, task="i2i", images=images[:1])
    torch.testing.assert_close(shared.tokens[0], ours.tokens[0], atol=1e-5, rtol=0)
    last = int(ours.mask[1].sum()) - 1
    assert (shared.tokens[1, last] - ours.tokens[1, last]).abs().max() > 1e-3


def test_images_are_halved_as_the_official_code_does():
    transforms = pytest.importorskip("torchvision.transforms.functional")
    levels = torch.randint(0, 256, (1, 3, 77, 130), generator=torch.Generator().manual_seed(0))
    expected = transforms.resize(levels.to(torch.uint8), [38, 65])
    assert torch.equal(halve_images(levels / 127.5 - 1), expected)


def test_tokens_are_the_states_after_the_final_norm(encoder, reference):
    qwen, _ = reference
    seen = {}
    hook = qwen.model.language_model.norm.register_forward_hook(
        lambda _module, inputs, output: seen.update(before=inputs[0], after=output)
    )
    ids = encoder.qwen_tokenizer(TEMPLATES["video"].text.format("a cat"), return_tensors="pt")
    with torch.no_grad():
        qwen(**ids)
    hook.remove()
    ours = encoder.encode(["a cat"]).tokens
    torch.testing.assert_close(ours, seen["after"][:, 129:], atol=1e-5, rtol=0)
    assert (ours - seen["before"][:, 129:]).abs().max() > 0.1


@pytest.mark.parametrize(("task", "kind", "cap"), [("t2v", "video", 256), ("t2i", "image", 512)])
def test_long_prompts_are_cut_as_the_official_code_does(task, kind, cap, encoder):
    template = TEMPLATES[kind]
    official = encoder.qwen_tokenizer(
        [template.text.format(LONG_PROMPT), template.text.format("short")],
        truncation=True,
        max_length=cap + template.crop,
        padding=True,
        padding_side="right",
        return_tensors="pt",
    )
    ids, mask = encoder.tokenize([LONG_PROMPT, "short"], task)
    assert torch.equal(ids, official["input_ids"])
    assert torch.equal(mask, official["attention_mask"].bool())
    assert mask[0].sum() == cap + template.crop


def test_edit_prompts_are_not_cut(encoder):
    ids, _ = encoder.tokenize([LONG_PROMPT], "i2i", [4])
    text = TEMPLATES["edit"].text.format(LONG_PROMPT)
    tags = "<|vision_start|>" + "<|image_pad|>" * 4 + "<|vision_end|><|im_end|>"
    assert ids[0].tolist() == encoder.qwen_tokenizer(text + tags)["input_ids"]
    assert len(ids[0]) > 700


@pytest.mark.parametrize("task", ["t2v", "t2i", "i2i"])
def test_a_padded_batch_equals_single_prompts(task, encoder):
    image = torch.linspace(-1, 1, 3 * 120 * 90).reshape(1, 3, 120, 90)
    together = encoder.encode(PROMPTS, task=task, images=image)
    for row, prompt in enumerate(PROMPTS):
        alone = encoder.encode([prompt], task=task, images=image)
        length = alone.tokens.shape[1]
        assert together.mask[row].sum() == length
        torch.testing.assert_close(
            together.tokens[row, :length], alone.tokens[0], atol=1e-5, rtol=0
        )
        assert not together.tokens[row, length:].any()
        torch.testing.assert_close(together.pooled[row], alone.pooled[0], atol=1e-5, rtol=0)


def test_the_negative_prompt_is_that_of_diffusers():
    source = Path(diffusers.__file__).parent / "pipelines/kandinsky5/pipeline_kandinsky.py"
    assert f'negative_prompt = "{VIDEO_NEGATIVE_PROMPT}"' in source.read_text(encoding="utf-8")


def test_edit_asks_for_an_image_that_fits(encoder):
    with pytest.raises(ValueError, match="source image, got no image"):
        encoder.encode(["a"], task="i2i")
    with pytest.raises(ValueError, match=r"3 prompts, got \(2, 3, 64, 64\)"):
        encoder.encode(["a", "b", "c"], task="i2i", images=torch.zeros(2, 3, 64, 64))


@pytest.mark.parametrize("task", ["t2v", "i2i"])
@pytest.mark.parametrize("tag", ["<|image_pad|>", "<|im_start|>", "<|im_end|>", "<|endoftext|>"])
def test_a_prompt_cannot_hold_what_belongs_to_the_chat(encoder, task, tag):
    refusal = re.escape(f"prompt: found {tag}, a special token of Qwen2.5-VL, which a prompt")
    with pytest.raises(ValueError, match=refusal):
        encoder.encode([f"a {tag} fox"], task=task, images=torch.zeros(1, 3, 64, 64))


# loading and placement


def test_default_sizes_are_those_of_the_released_models():
    with torch.device("meta"):
        qwen = transformers.Qwen2_5_VLModel(transformers.Qwen2_5_VLConfig(**QWEN_7B_CONFIG))
        clip = transformers.CLIPTextModel(transformers.CLIPTextConfig(**CLIP_L_CONFIG))
    # Qwen2.5-VL-7B has 8 292 166 656 parameters, its language head 152064 x 3584 of them
    assert sum(p.numel() for p in qwen.parameters()) == 8_292_166_656 - 152064 * 3584
    assert sum(p.numel() for p in clip.parameters()) == 123_060_480


def older_names(name: str) -> str:
    """Return the names as in the published 7B files and in ComfyUI's single file."""
    return name.replace("model.language_model.", "model.").replace("model.visual.", "visual.")


def test_files_with_older_names_give_the_same(encoder, reference, load, tmp_path):
    qwen, clip = (model.state_dict() for model in reference)
    save_file({older_names(k): v.clone() for k, v in qwen.items()}, tmp_path / "qwen.safetensors")
    clip = {f"text_model.{name}": tensor for name, tensor in clip.items()}
    clip |= {"text_projection.weight": torch.zeros(16, 16), "logit_scale": torch.zeros(())}
    save_file(clip, tmp_path / "clip.safetensors")
    other = load(tmp_path / "qwen.safetensors", tmp_path / "clip.safetensors")
    expected, found = encoder.encode(["a cat"]), other.encode(["a cat"])
    assert torch.equal(found.tokens, expected.tokens)
    assert torch.equal(found.pooled, expected.pooled)


def test_a_diffusers_folder_gives_the_same(encoder, reference, tokenizer_folders, tmp_path):
    qwen, clip = reference
    qwen.save_pretrained(tmp_path / "text_encoder", max_shard_size="4MB")
    clip.save_pretrained(tmp_path / "text_encoder_2")
    (tmp_path / "tokenizer").symlink_to(tokenizer_folders["qwen_tokenizer"])
    (tmp_path / "tokenizer_2").symlink_to(tokenizer_folders["clip_tokenizer"])
    assert len(list((tmp_path / "text_encoder").glob("*.safetensors"))) > 1
    other = load_qwen_clip_folder(tmp_path)
    assert torch.equal(other.encode(["a cat"]).tokens, encoder.encode(["a cat"]).tokens)
    assert torch.equal(other.encode(["a cat"]).pooled, encoder.encode(["a cat"]).pooled)


def test_scaled_fp8_weights_are_unscaled(reference, load, tmp_path):
    name = "model.language_model.layers.0.mlp.up_proj"
    state = {key: tensor.clone() for key, tensor in reference[0].state_dict().items()}
    codes = (state[f"{name}.weight"] * 100).to(torch.float8_e4m3fn)
    state |= {f"{name}.weight": codes, f"{name}.scale_weight": torch.tensor(0.01)}
    state |= {"scaled_fp8": torch.zeros(2, dtype=torch.float8_e4m3fn)}
    save_file(state, tmp_path / "qwen.safetensors")
    weight = load(tmp_path / "qwen.safetensors", dtype=torch.float32).qwen.get_parameter(
        "language_model.layers.0.mlp.up_proj.weight"
    )
    torch.testing.assert_close(weight.data, codes.float() * 0.01)


GGUF_TINY = {
    "text_config": QWEN_TINY["text_config"]
    | {"hidden_size": 64, "intermediate_size": 96}
    | {"rope_scaling": {"type": "mrope", "mrope_section": [4, 6, 6]}},
    "vision_config": QWEN_TINY["vision_config"]
    | {"hidden_size": 32, "intermediate_size": 64, "out_hidden_size": 64},
}


@pytest.fixture(scope="module")
def gguf_reference():
    """Qwen with rows that divide into GGUF's blocks."""
    torch.manual_seed(1)
    qwen = transformers.Qwen2_5_VLModel(transformers.Qwen2_5_VLConfig(**GGUF_TINY)).eval()
    for name, parameter in qwen.named_parameters():
        torch.nn.init.normal_(parameter, std=0.2, mean=float("norm" in name))
    return qwen


@pytest.fixture
def write_language_model(gguf_reference, write_gguf):
    """Write what the GGUF file of Qwen holds: all but the vision tower."""
    gguf = pytest.importorskip("gguf")
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.QWEN2VL, 2)
    stored = {
        names.get_name(name.replace("language_model.", "model."), (".weight", ".bias")): tensor
        for name, tensor in gguf_reference.state_dict().items()
        if not name.startswith("visual.")
    }
    stored["output.weight"] = torch.zeros(64, 64)

    def write(path, kind):
        return write_gguf(path, stored, kind, architecture="qwen2vl")

    return write


GGUF_KINDS = pytest.mark.parametrize(
    ("kind", "error"), [("F32", 1e-5), ("F16", 3e-3), ("Q8_0", 8e-2)]
)


def kept_and_unpacked(load, path, kind):
    """Return the encoders that leave a file as it is and that unpack it; both encode the same."""
    main = {"F32": torch.float32, "F16": torch.float16, "Q8_0": torch.bfloat16}[kind]
    kept = load(path, qwen_config=GGUF_TINY)
    packed = {torch.uint8} if kind == "Q8_0" else set()
    assert {p.dtype for p in kept.qwen.parameters()} == {main, *packed}
    unpacked = load(path, qwen_config=GGUF_TINY, dtype=main)
    assert {p.dtype for p in unpacked.qwen.parameters()} == {main}
    own, theirs = kept.encode(PROMPTS).tokens, unpacked.encode(PROMPTS).tokens
    assert (own - theirs).norm() < 1e-3 * theirs.norm()
    return kept, unpacked


@GGUF_KINDS
def test_gguf_gives_the_same(gguf_reference, load, write_language_model, tmp_path, kind, error):
    path = write_language_model(tmp_path / "qwen.gguf", kind)
    save_file(gguf_reference.state_dict(), tmp_path / "qwen.safetensors")
    options = {"dtype": torch.float32, "qwen_config": GGUF_TINY}
    expected = load(tmp_path / "qwen.safetensors", **options).encode(PROMPTS).tokens
    blind = load(path, **options)
    tokens = blind.encode(PROMPTS).tokens
    assert (tokens - expected).norm() <= error * expected.norm()
    with pytest.raises(
        ValueError,
        match=rf"without its vision tower: .* put its mmproj file .*mmproj-Qwen.* into {tmp_path} ",
    ):
        blind.encode(["a"], task="i2i", images=torch.zeros(1, 3, 64, 64))
    with pytest.raises(CannotWriteError, match=r"looks at the image \(qwen\.gguf is the language"):
        blind.write("a", torch.zeros(1, 3, 56, 56, dtype=torch.uint8), torch.argmax, 1)
    kept, unpacked = kept_and_unpacked(load, path, kind)
    head = torch.randn(
        GGUF_TINY["text_config"]["vocab_size"], 64, generator=torch.Generator().manual_seed(0)
    )
    written = []
    for encoder in (kept, unpacked):
        encoder._read_head = lambda: head
        written.append(encoder.write(PROMPTS[0], None, lambda scores: scores.argmax(-1), 3))
    assert written[0] == written[1]
    assert {p.device.type for p in load(path, device="meta", **options).parameters()} == {"meta"}


@GGUF_KINDS
def test_an_edit_through_an_mmproj_file_is_encoded_as_through_the_whole(
    gguf_reference, load, write_language_model, write_mmproj, tmp_path, kind, error
):
    state = gguf_reference.state_dict()
    pair = tmp_path / "pair"
    pair.mkdir()
    path = write_language_model(pair / "qwen.gguf", kind)
    write_mmproj(pair / "mmproj-qwen.gguf", state, kind)
    save_file(state, tmp_path / "qwen.safetensors")
    given = {
        "task": "i2i",
        "images": torch.rand(1, 3, 150, 230, generator=torch.Generator().manual_seed(0)) * 2 - 1,
    }
    options = {"dtype": torch.float32, "qwen_config": GGUF_TINY}
    expected = load(tmp_path / "qwen.safetensors", **options).encode(["make it blue"], **given)
    for source in (path, pair):
        seeing = load(source, **options)
        found = seeing.encode(["make it blue"], **given)
        assert (found.tokens - expected.tokens).norm() <= error * expected.tokens.norm()
        assert torch.equal(found.mask, expected.mask)
    given["images"] = -given["images"]
    other = seeing.encode(["make it blue"], **given).tokens
    assert (other - found.tokens).norm() > 0.1 * other.norm()
    kept_and_unpacked(load, path, kind)


def test_an_mmproj_file_of_other_sizes_is_named(
    gguf_reference, load, write_language_model, write_mmproj, tmp_path
):
    path = write_language_model(tmp_path / "qwen.gguf", "F16")
    state = gguf_reference.state_dict()
    first = {name: tensor for name, tensor in state.items() if "visual.blocks.1." not in name}
    write_mmproj(tmp_path / "mmproj-short.gguf", first)
    with pytest.raises(
        CheckpointError, match=r"qwen\.gguf with mmproj-short\.gguf is not a Qwen.*12"
    ):
        load(path, qwen_config=GGUF_TINY)


def test_scaled_fp8_without_its_scale(reference, load, tmp_path):
    name = "model.language_model.layers.0.mlp.up_proj"
    state = {key: tensor.clone() for key, tensor in reference[0].state_dict().items()}
    state[f"{name}.weight"] = state[f"{name}.weight"].to(torch.float8_e4m3fn)
    state["scaled_fp8"] = torch.zeros(2, dtype=torch.float8_e4m3fn)
    save_file(state, tmp_path / "qwen.safetensors")
    with pytest.raises(
        CheckpointError, match=r"1 of the fp8 tensors lack their scale, first .*up_p"
    ):
        load(tmp_path / "qwen.safetensors")


def test_dtype_is_the_files_or_the_one_asked_for(load, reference, tmp_path):
    state = {key: tensor.bfloat16() for key, tensor in reference[0].state_dict().items()}
    save_file(state, tmp_path / "qwen.safetensors")
    assert load(tmp_path / "qwen.safetensors").encode(["a"]).tokens.dtype == torch.bfloat16
    asked = load(tmp_path / "qwen.safetensors", dtype=torch.float16)
    assert {p.dtype for p in asked.parameters()} == {torch.float16}


def test_loading_says_what_is_wrong(files, load, tmp_path):
    with pytest.raises(CheckpointError, match=r"holds no \.safetensors or \.gguf file"):
        load(tmp_path)
    with pytest.raises(CheckpointError, match=r"not a Qwen2_5_VLModel: of 26 tensors, 26 missing"):
        load(qwen=files[1])
    with pytest.raises(CheckpointError, match=r"not a CLIPTextModel: .* 56 unexpected"):
        load(clip=files[0])
    with pytest.raises(CheckpointError, match=r"another size: \S+ has shape"):
        load(clip_config={**CLIP_TINY, "vocab_size": 49400})
    with pytest.raises(CheckpointError, match=r"tokenizer folder .* does not exist"):
        load_qwen_clip(
            *files,
            qwen_tokenizer=tmp_path / "none",
            clip_tokenizer=tmp_path,
            qwen_config=QWEN_TINY,
            clip_config=CLIP_TINY,
        )
    (tmp_path / "text.safetensors").write_text("hello")
    with pytest.raises(CheckpointError, match="not a safetensors file"):
        load(tmp_path / "text.safetensors")


def test_offloaded_weights_are_away_only_while_encoding(load, encoder, monkeypatch):
    offloaded = load(device="cpu", offload=True)
    home = [parameter.data_ptr() for parameter in offloaded.parameters()]
    log = []

    def watch(name, module):
        at_home = [parameter.data_ptr() for parameter in module.parameters()]

        def where():
            away = [p.data_ptr() != at for p, at in zip(module.parameters(), at_home, strict=True)]
            return "away" if all(away) else "at home" if not any(away) else "half way"

        def move(_device):
            log.append(f"{name} moves, {where()}")
            if log.count(log[-1]) == 1:  # the second move finds the parameters back already
                for parameter in module.parameters():
                    parameter.data = parameter.data.clone()  # what another device would hold

        monkeypatch.setattr(module, "to", move)
        module.register_forward_pre_hook(lambda *_: log.append(f"{name} encodes, {where()}"))

    watch("qwen", offloaded.qwen)
    watch("clip", offloaded.clip)
    found, expected = offloaded.encode(["a cat"]), encoder.encode(["a cat"])
    assert log == [
        "qwen moves, at home",
        "qwen encodes, away",
        "qwen moves, at home",
        "clip moves, at home",
        "clip encodes, away",
        "clip moves, at home",
    ]
    assert [parameter.data_ptr() for parameter in offloaded.parameters()] == home
    assert torch.equal(found.tokens, expected.tokens)


def test_a_released_encoder_holds_nothing_and_says_so(load):
    released = load()
    released.release()
    assert not list(released.parameters())
    with pytest.raises(ValueError, match="released; load it again"):
        released.encode(["a"])
