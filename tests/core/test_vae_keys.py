"""The original naming of the autoencoders' weights."""

from __future__ import annotations

import pytest
import torch

from kandinsky_core.family.variants import VAES
from kandinsky_core.models import ImageVAE, VideoVAE
from kandinsky_core.models.vae.keys import (
    VAELayout,
    detect_vae_layout,
    to_diffusers_key,
    to_diffusers_shape,
    to_original_key,
)

# Names and shapes as they stand in published files (hunyuan_video_vae, ae.safetensors).
VIDEO_FILE = {
    "encoder.conv_in.conv.weight": (128, 3, 3, 3, 3),
    "encoder.down.1.block.0.nin_shortcut.conv.weight": (256, 128, 1, 1, 1),
    "encoder.down.2.downsample.conv.conv.bias": (512,),
    "encoder.mid.attn_1.q.weight": (512, 512, 1, 1, 1),
    "encoder.mid.block_2.conv2.conv.weight": (512, 512, 3, 3, 3),
    "decoder.mid.attn_1.proj_out.weight": (512, 512, 1, 1, 1),
    "decoder.mid.attn_1.norm.weight": (512,),
    "decoder.up.0.block.0.conv1.conv.weight": (128, 256, 3, 3, 3),
    "decoder.up.0.block.2.norm2.weight": (128,),
    "decoder.up.1.upsample.conv.conv.weight": (256, 256, 3, 3, 3),
    "decoder.up.3.block.0.norm1.weight": (512,),
    "decoder.norm_out.bias": (128,),
    "post_quant_conv.weight": (16, 16, 1, 1, 1),
}
IMAGE_FILE = {
    "encoder.down.0.block.0.norm1.weight": (128,),
    "encoder.down.0.downsample.conv.weight": (128, 128, 3, 3),
    "encoder.mid.attn_1.proj_out.weight": (512, 512, 1, 1),
    "decoder.up.0.block.0.nin_shortcut.weight": (128, 256, 1, 1),
    "decoder.up.3.upsample.conv.weight": (512, 512, 3, 3),
    "decoder.up.0.block.0.conv1.weight": (128, 256, 3, 3),
    "decoder.norm_out.weight": (128,),
}


@pytest.mark.parametrize(
    ("vae", "file"),
    [
        (VideoVAE(VAES["hunyuan"], device="meta"), VIDEO_FILE),
        (ImageVAE(VAES["flux"], device="meta"), IMAGE_FILE),
    ],
    ids=["video", "image"],
)
def test_published_names_find_their_parameter(vae, file):
    parameters = {name: tuple(value.shape) for name, value in vae.state_dict().items()}
    for original, shape in file.items():
        ours = to_diffusers_key(original, 4)
        assert parameters[ours] == to_diffusers_shape(ours, shape), original
        assert to_original_key(ours, 4) == original
    originals = {to_original_key(name, 4) for name in parameters}
    assert len(originals) == len(parameters)
    assert {to_diffusers_key(name, 4) for name in originals} == set(parameters)


def test_shape_of_a_convolution_stays():
    assert to_diffusers_shape("post_quant_conv.weight", (16, 16, 1, 1, 1)) == (16, 16, 1, 1, 1)
    assert to_diffusers_shape("a.mid_block.attentions.0.to_q.bias", (512,)) == (512,)


@pytest.mark.parametrize("prefix", ["", "vae.", "first_stage_model."])
@pytest.mark.parametrize(("kind", "file"), [("video", VIDEO_FILE), ("image", IMAGE_FILE)])
def test_original_layout_is_recognised(kind, file, prefix):
    keys = [prefix + key for key in file] + ["model.diffusion_model.weight"]
    layout = detect_vae_layout(keys)
    num_stages = 1 + max(int(k.split(".")[2]) for k in file if "decoder.up." in k and "conv1" in k)
    assert layout == VAELayout(kind, "original", prefix, num_stages)


@pytest.mark.parametrize(
    ("kind", "vae"),
    [
        ("video", VideoVAE(VAES["nano"], device="meta")),
        ("image", ImageVAE(VAES["flux"], device="meta")),
    ],
)
@pytest.mark.parametrize("naming", ["diffusers", "original"])
def test_names_translate_both_ways_and_tell_their_layout(kind, vae, naming):
    names = list(vae.state_dict())
    num_stages = len(vae.config.block_out_channels)
    is_original = naming == "original"
    file = [to_original_key(name, num_stages) if is_original else name for name in names]
    layout = detect_vae_layout(["vae." + key for key in file])
    assert layout == VAELayout(kind, naming, "vae.", num_stages)
    assert [to_diffusers_key(key, num_stages) for key in file] == names


def test_other_models_are_not_recognised():
    assert detect_vae_layout(["visual_transformer_blocks.0.x", "decoder.conv_in.weight"]) is None


def test_original_weights_decode_alike():
    vae = VideoVAE(VAES["nano"])
    stored = {to_original_key(name, 3): value for name, value in vae.state_dict().items()}
    other = VideoVAE(VAES["nano"])
    other.load_state_dict({to_diffusers_key(name, 3): value for name, value in stored.items()})
    latents = torch.randn(1, 16, 1, 2, 2)
    with torch.no_grad():
        assert torch.equal(vae.decode(latents), other.decode(latents))
