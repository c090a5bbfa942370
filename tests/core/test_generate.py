"""The pipeline on a small untrained model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from kandinsky_core.checkpoint import Lora, LoraMatch, LoraPair
from kandinsky_core.family.config import VideoVAEConfig
from kandinsky_core.family.settings import RELEASES, Release, SamplingSettings
from kandinsky_core.family.tasks import check_task, default_task
from kandinsky_core.family.variants import VARIANTS
from kandinsky_core.flow import Step, normalize_first_frames
from kandinsky_core.generate import (
    Generated,
    GenerateRequest,
    fit_image,
    generate,
    settle,
)
from kandinsky_core.models import CrossDiT, VideoVAE, to_model_space
from kandinsky_core.pipeline import Pipeline
from kandinsky_core.text import TextConditioning

SETTINGS = SamplingSettings(
    num_steps=3,
    guidance_scale=2.0,
    shift=3.0,
    rope_scale=(1.0, 1.0, 1.0),
    sizes=((32, 48), (48, 32)),
    num_frames=5,
    frame_choices=(1, 5, 9),
    negative_prompt="nothing",
)
VAE = VideoVAEConfig(
    (8, 8), 1, latent_channels=4, norm_num_groups=4, patch_size=4, mid_block_attention=False
)


class CountingText:
    """Gives every prompt its own vector and remembers what was encoded."""

    def __init__(self) -> None:
        self.seen: list[str] = []

    def encode(self, prompts: Sequence[str], **_: object) -> TextConditioning:
        self.seen += prompts
        (prompt,) = prompts
        generator = torch.Generator().manual_seed(sum(prompt.encode()))
        return TextConditioning(
            torch.randn(1, 3, 24, generator=generator),
            torch.ones(1, 3, dtype=torch.bool),
            torch.randn(1, 12, generator=generator),
        )


@pytest.fixture
def pipeline() -> Pipeline:
    torch.manual_seed(0)
    transformer = CrossDiT(VARIANTS["debug"]).eval()
    for param in transformer.parameters():
        torch.nn.init.normal_(param, std=0.1)
    vae = VideoVAE(replace(VAE, block_out_channels=(8, 8, 8), temporal_compression=4)).eval()
    return Pipeline(transformer, CountingText(), vae, SETTINGS)


def picture(height: int = 40, width: int = 60) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)


def with_trigger(pipeline: Pipeline, trigger: str) -> Pipeline:
    """Return the pipeline with a LoRA that changes nothing and asks for a text."""
    name = "out_layer.out_layer"
    rows, columns = pipeline.transformer.out_layer.out_layer.weight.shape
    pairs = {name: LoraPair(torch.zeros(1, columns), torch.zeros(rows, 1), 1.0)}
    lora = Lora(Path("lora.safetensors"), "bare", pairs, (), "", {"trigger": trigger})
    return replace(pipeline, loras=(LoraMatch(lora, pairs, ()),))


def latent_bytes(result: Generated) -> bytes:
    return result.latents.numpy().tobytes()


def test_a_seed_gives_the_same_bytes_and_another_seed_does_not(pipeline: Pipeline) -> None:
    first, again, other = (
        latent_bytes(generate(pipeline, GenerateRequest("a", seed=seed))) for seed in (7, 7, 8)
    )
    assert first == again
    assert first != other


def test_trigger_stands_before_the_prompt_but_not_before_the_negative(pipeline: Pipeline) -> None:
    pipeline = with_trigger(pipeline, "zorb")
    generate(pipeline, GenerateRequest("a"))
    generate(pipeline, GenerateRequest("a", use_triggers=False))
    assert pipeline.text_encoder.seen == ["zorb a", "nothing", "a", "nothing"]


def test_settings_of_the_checkpoint_fill_what_is_left_open(pipeline: Pipeline) -> None:
    steps = []
    result = generate(pipeline, GenerateRequest("a"), on_step=steps.append)
    assert [step.index for step in steps] == [0, 1, 2]
    assert pipeline.text_encoder.seen == ["a", "nothing"]
    assert result.latents.shape == (1, 4, 2, 4, 6)
    frames = list(result.frames())
    assert len(frames) == 5
    assert frames[0].shape == (32, 48, 3)
    assert frames[0].dtype == np.uint8


def test_every_setting_can_be_overridden(pipeline: Pipeline) -> None:
    request = GenerateRequest(
        "a", height=16, width=32, num_frames=9, num_steps=1, guidance_scale=1.0, shift=1.0
    )
    result = generate(pipeline, request)
    assert result.latents.shape == (1, 4, 3, 2, 4)
    assert pipeline.text_encoder.seen == ["a"]  # no guidance, so no negative prompt
    assert result.settings.shift == 1.0


def test_image_to_video_starts_from_the_image(pipeline: Pipeline) -> None:
    image = picture()
    request = GenerateRequest("a", task="i2v", image=image, height=32, width=48)
    result = generate(pipeline, request)
    with torch.no_grad():
        expected = pipeline.vae.encode(fit_image(image, (32, 48)))
    assert (result.latents[:, :, :1] - expected).abs().max() < 1e-5


def test_normalising_can_be_left_out(pipeline: Pipeline) -> None:
    request = GenerateRequest("a", task="i2v", image=picture(), num_frames=25)
    plain = generate(pipeline, replace(request, normalize=False)).latents
    space = pipeline.vae.config
    expected = normalize_first_frames(to_model_space(plain, space))
    result = generate(pipeline, request).latents
    assert (to_model_space(result, space) - expected).abs().max() < 1e-5
    assert (result - plain).abs().max() > 1e-3


def test_last_step_can_go_without_guidance(pipeline: Pipeline) -> None:
    calls, steps = [], {}
    pipeline.transformer.out_layer.register_forward_hook(lambda *_: calls.append(1))
    for unguided in (False, True):
        seen: list[Step] = []
        request = GenerateRequest("a", unguided_last_step=unguided)
        generate(pipeline, request, on_step=seen.append)
        steps[unguided] = [step.latents for step in seen]
    assert len(calls) == 6 + 5  # three steps, two prompts
    assert torch.equal(steps[True][1], steps[False][1])
    assert not torch.allclose(steps[True][2], steps[False][2])


def test_an_image_makes_the_task_image_to_video(pipeline: Pipeline) -> None:
    assert settle(pipeline, GenerateRequest("a", image=picture())).task == "i2v"
    assert settle(pipeline, GenerateRequest("a")).task == "t2v"


def test_an_image_task_makes_one_frame(pipeline: Pipeline) -> None:
    result = generate(pipeline, GenerateRequest("a", task="t2i", num_frames=9))
    assert len(list(result.frames())) == 1


def test_raising_in_the_callback_cancels_the_run(pipeline: Pipeline) -> None:
    class CancelledError(Exception):
        pass

    def stop(_: object) -> None:
        raise CancelledError

    with pytest.raises(CancelledError):
        generate(pipeline, GenerateRequest("a"), on_step=stop)
    assert generate(pipeline, GenerateRequest("a")).latents.isfinite().all()


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        (GenerateRequest("a", height=30, width=48), "nearest"),
        (GenerateRequest("a", height=32), "without width"),
        (GenerateRequest("a", num_frames=6), "nearest"),
        (GenerateRequest("a", task="i2v"), "starts from an image"),
        (GenerateRequest("a", task="t2v", image=picture()), "takes no image"),
        (GenerateRequest("a", num_steps=0), "at least 1"),
        (GenerateRequest("a", shift=-1.0), "above 0"),
        (GenerateRequest("a", shift=float("nan")), "above 0"),
        (GenerateRequest("a", guidance_scale=float("nan")), "must be a number"),
        (GenerateRequest("a", rope_scale=(1.0, 0.0, 1.0)), "above 0"),
        (GenerateRequest("a", seed=-1), "from 0 to"),
        (GenerateRequest("a", seed=2**64), "from 0 to"),
        (GenerateRequest("a", task="i2i", image=picture()), "choose t2v or i2v or t2i"),
    ],
)
def test_what_does_not_fit_is_refused(
    pipeline: Pipeline, request_: GenerateRequest, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        generate(replace(pipeline, tasks=("t2v", "i2v", "t2i")), request_)
    assert pipeline.text_encoder.seen == []  # refused before any work


def test_text_of_another_model_is_refused(pipeline: Pipeline) -> None:
    class NarrowText(CountingText):
        def encode(self, prompts: Sequence[str], **_: object) -> TextConditioning:
            text = super().encode(prompts)
            return replace(text, tokens=text.tokens[..., :8])

    with pytest.raises(ValueError, match=r"\(8, 12\) wide.*takes \(24, 12\)"):
        generate(replace(pipeline, text_encoder=NarrowText()), GenerateRequest("a"))


def test_the_task_follows_from_the_model_and_the_image() -> None:
    assert default_task(("t2v", "i2v", "t2i"), with_image=False) == "t2v"
    assert default_task(("t2v", "i2v", "t2i"), with_image=True) == "i2v"
    assert default_task(("i2i",), with_image=True) == "i2i"
    assert default_task(("i2i",), with_image=False) == "i2i"
    # what was meant, for the sentence that refuses it
    assert default_task(("t2i",), with_image=True) == "i2i"
    assert default_task(("t2v",), with_image=True) == "i2v"


@pytest.mark.parametrize(
    ("tasks", "task", "words"),
    [
        (("t2v",), "i2v", "choose t2v, or load a file for it such as kandinsky5lite_i2v_5s"),
        (("t2i",), "i2i", "such as kandinsky5lite_i2i"),
        (("i2i",), "t2v", "such as kandinsky5lite_t2v_sft_5s"),
    ],
)
def test_a_task_that_was_not_trained_names_a_file_that_does_it(tasks, task, words) -> None:
    with pytest.raises(ValueError, match=words):
        check_task(task, tasks)
    check_task(tasks[0], tasks)


@pytest.mark.parametrize(
    ("size_class", "given", "size", "shift", "attention"),
    [
        # 2000 x 1500 keeps its 4 : 3 at the area of the class, in multiples of 16 or 128
        ("auto", {}, (544, 720), 10.0, "dense"),
        ("small", {}, (544, 720), 10.0, "dense"),
        ("large", {}, (896, 1152), 5.0, "nabla"),
        ("auto", {"height": 768, "width": 1280}, (768, 1280), 5.0, "nabla"),
        ("small", {"height": 768, "width": 1280}, (768, 1280), 10.0, "dense"),
    ],
)
def test_pro_makes_hd_of_an_image(
    pipeline: Pipeline, size_class, given, size, shift, attention
) -> None:
    pro = replace(pipeline, settings=RELEASES[Release("video_pro", "i2v", 5, "sft")])
    image = picture(1500, 2000)
    request = GenerateRequest("a", task="i2v", image=image, size_class=size_class, **given)
    settled = settle(pro, request)
    assert settled.shape.size == size
    assert (settled.settings.shift, settled.settings.attention) == (shift, attention)


def test_a_class_that_the_checkpoint_has_not(pipeline: Pipeline) -> None:
    with pytest.raises(ValueError, match="made for one class of sizes, around 48x32"):
        settle(pipeline, GenerateRequest("a", size_class="large"))


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"nabla_p": 0.5}, "P is 0.5 and attention is dense"),
        ({"nabla_p": 1.5, "attention": "nabla", "height": 128, "width": 128}, "P is 1.5"),
        ({"attention": "nabla", "height": 128, "width": 144}, "width 144 .* 128 and 256"),
    ],
)
def test_attention_that_cannot_be_is_refused_before_any_work(
    pipeline: Pipeline, given: dict[str, object], words: str
) -> None:
    with pytest.raises(ValueError, match=words):
        settle(pipeline, GenerateRequest("a", **given))


def test_an_edit_shows_the_crop_to_the_text_encoder_with_both_prompts(pipeline: Pipeline) -> None:
    shown = []

    class SeeingText(CountingText):
        def encode(
            self, prompts: Sequence[str], *, images: torch.Tensor | None = None, **_: object
        ) -> TextConditioning:
            shown.append(images)
            return super().encode(prompts)

    request = GenerateRequest("a", task="i2i", image=picture(100, 90))
    result = generate(replace(pipeline, text_encoder=SeeingText()), request)
    assert result.shape.size == (48, 32)  # of the two sizes, the nearer in aspect
    assert [image.shape for image in shown] == [(1, 3, 48, 32)] * 2


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float8_e4m3fn])
def test_low_precision_weights_give_nearly_the_same_latents(
    pipeline: Pipeline, dtype: torch.dtype
) -> None:
    request = GenerateRequest("a", guidance_scale=1.0)
    exact = generate(pipeline, request).latents
    pipeline.transformer.to(dtype)
    rounded = generate(pipeline, request).latents
    assert rounded.dtype == torch.float32
    assert (rounded - exact).norm() < {2: 0.02, 1: 0.2}[dtype.itemsize] * exact.norm()


def test_decoding_keeps_to_a_memory_budget(pipeline: Pipeline) -> None:
    result = generate(pipeline, GenerateRequest("a"))
    with pytest.raises(ValueError, match="too small"):
        next(result.frames(memory_budget=1000))


def test_fitting_keeps_the_middle_and_the_aspect() -> None:
    image = np.zeros((40, 80, 3), np.uint8)
    image[:, 20:60] = 255  # a white square in the middle of a wide image
    fitted = fit_image(image, (32, 32))
    assert fitted.shape == (1, 3, 1, 32, 32)
    assert (fitted[..., 1:-1] > 0.99).all()
