"""Loaders: files of the model folders, or the bundled nano, to MODEL, CLIP and VAE."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from comfy_api.latest import io

from ..kandinsky_core.family import TASKS
from ..kandinsky_core.nano import nano_path
from . import host

CATEGORY = "Kandinsky 5/loaders"


def _path(
    folder: host.Folder, name: str, input_id: str, part: Literal["transformer", "vae"]
) -> Path:
    if name == host.NANO_EDIT:
        return nano_path("edit_transformer")
    return nano_path(part) if name == host.NANO else host.locate(folder, name, input_id)


class LoadModel(io.ComfyNode):
    """A transformer."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="K5_LoadModel",
            display_name="Load Model (Kandinsky 5)",
            category=CATEGORY,
            description=(
                "Loads a Kandinsky 5 transformer: nano or nano edit, which come with the pack, or "
                "a .safetensors or .gguf file from models/diffusion_models."
            ),
            inputs=[
                io.Combo.Input(
                    "model_name",
                    options=host.choices("diffusion_models", host.NANO, host.NANO_EDIT),
                    tooltip=(
                        "The model. Its size is read off the weights, its task and settings off "
                        "the file name or metadata."
                    ),
                ),
                io.Combo.Input(
                    "weight_dtype",
                    options=list(host.WEIGHT_DTYPES),
                    default="default",
                    tooltip=(
                        "Precision the weights are kept in. default chooses by graphics card and "
                        "leaves fp8 files in fp8; the fp8 types halve the memory of bf16 at some "
                        "loss of quality. With default the matrices of a GGUF file stay packed, "
                        "in 3 to 9 bits a weight, and are unpacked layer by layer while they are "
                        "used; the other types unpack them once, while the file is loaded."
                    ),
                ),
            ],
            outputs=[io.Model.Output(tooltip="The model, ready for native samplers and ours.")],
        )

    @classmethod
    def validate_inputs(cls, model_name: str) -> bool:  # noqa: ARG003
        """Leave unknown names to `execute`, whose message says where files belong."""
        return True

    @classmethod
    def execute(cls, model_name: str, weight_dtype: str) -> io.NodeOutput:
        path = _path("diffusion_models", model_name, "model_name", "transformer")
        return io.NodeOutput(host.load_model(path, weight_dtype))


class LoadTextEncoders(io.ComfyNode):
    """Text encoders."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="K5_LoadTextEncoders",
            display_name="Load Text Encoders (Kandinsky 5)",
            category=CATEGORY,
            description=(
                "Loads what reads the prompt: nano's own encoder, or Qwen2.5-VL 7B and CLIP-L "
                "from models/text_encoders."
            ),
            inputs=[
                io.Combo.Input(
                    "qwen_name",
                    options=host.choices("text_encoders", host.NANO),
                    tooltip=(
                        "Qwen2.5-VL 7B (e.g. qwen_2.5_vl_7b_fp8_scaled.safetensors) for the "
                        "released models; nano's encoder for nano. A .gguf file stays packed in "
                        "memory and sees the image of an edit prompt through the mmproj file "
                        "beside it."
                    ),
                ),
                io.Combo.Input(
                    "clip_name",
                    options=host.choices("text_encoders", host.NO_FILE),
                    default=host.NO_FILE,
                    tooltip=("CLIP-L (clip_l.safetensors), needed beside Qwen. nano needs none."),
                ),
                io.Combo.Input(
                    "task",
                    options=list(TASKS),
                    default="t2v",
                    tooltip=(
                        "What the native CLIP Text Encode node encodes for: the template around "
                        "the prompt differs for videos (t2v, i2v) and images (t2i). "
                        "Text Encode (Kandinsky 5) has its own choice."
                    ),
                ),
            ],
            outputs=[io.Clip.Output(tooltip="For CLIP Text Encode and Text Encode (Kandinsky 5).")],
        )

    @classmethod
    def validate_inputs(cls, qwen_name: str, clip_name: str) -> bool:  # noqa: ARG003
        """Leave unknown names to `execute`, whose message says where files belong."""
        return True

    @classmethod
    def fingerprint_inputs(cls, qwen_name: str = host.NANO, **_: Any) -> str:
        """Change with the mmproj files beside a GGUF file, which no input names."""
        return host.fingerprint_vision(qwen_name)

    @classmethod
    def execute(cls, qwen_name: str, clip_name: str, task: str) -> io.NodeOutput:
        if qwen_name == host.NANO:
            return io.NodeOutput(host.load_text_encoders(nano_path("text_encoder"), None, task))
        qwen = host.locate("text_encoders", qwen_name, "qwen_name")
        clip = None
        if clip_name != host.NO_FILE:
            clip = host.locate("text_encoders", clip_name, "clip_name")
        return io.NodeOutput(host.load_text_encoders(qwen, clip, task))


class LoadVAE(io.ComfyNode):
    """An autoencoder."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="K5_LoadVAE",
            display_name="Load VAE (Kandinsky 5)",
            category=CATEGORY,
            description=(
                "Loads what turns latents into pictures: nano's, HunyuanVideo's for the video "
                "models, FLUX's for the image models, from models/vae."
            ),
            inputs=[
                io.Combo.Input(
                    "vae_name",
                    options=host.choices("vae", host.NANO),
                    tooltip=(
                        "The VAE the model was trained with: hunyuan_video_vae_bf16.safetensors "
                        "for video, ae.safetensors (FLUX.1) for images, nano for nano."
                    ),
                ),
            ],
            outputs=[io.Vae.Output(tooltip="For native VAE nodes and Decode (Kandinsky 5).")],
        )

    @classmethod
    def validate_inputs(cls, vae_name: str) -> bool:  # noqa: ARG003
        """Leave unknown names to `execute`, whose message says where files belong."""
        return True

    @classmethod
    def execute(cls, vae_name: str) -> io.NodeOutput:
        return io.NodeOutput(host.load_vae(_path("vae", vae_name, "vae_name", "vae")))
