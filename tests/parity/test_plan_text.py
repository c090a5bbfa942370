"""Sizes of the text encoders against transformers' own modules."""

from __future__ import annotations

import torch
from transformers import CLIPTextConfig, CLIPTextModel, Qwen2_5_VLConfig, Qwen2_5_VLModel

from kandinsky_core.planning.text import clip_parameters, qwen_parameters
from kandinsky_core.text.qwen_clip_load import CLIP_L_CONFIG, QWEN_7B_CONFIG


def test_parameters_are_those_of_the_modules():
    with torch.device("meta"):
        qwen = Qwen2_5_VLModel(Qwen2_5_VLConfig(**QWEN_7B_CONFIG))
        clip = CLIPTextModel(CLIPTextConfig(**CLIP_L_CONFIG))
    assert qwen_parameters() == sum(parameter.numel() for parameter in qwen.parameters())
    assert clip_parameters() == sum(parameter.numel() for parameter in clip.parameters())
