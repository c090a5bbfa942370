"""Nodes as data: sockets and widgets of ours, widgets of others', and who plays which part."""

from __future__ import annotations

from typing import Any, NamedTuple

PREFIX = "K5_"
WIDGET_TYPES = ("INT", "FLOAT", "STRING", "BOOLEAN", "COMBO")
CONTROL = "control_after_generate"
"""What the page keeps after a seed: whether it changes with every run."""


class Input(NamedTuple):
    """An input of one of our nodes."""

    name: str
    type: str
    default: Any = None

    @property
    def is_widget(self) -> bool:
        """Whether it holds a value when nothing is connected."""
        return self.type in WIDGET_TYPES


class NodeSpec(NamedTuple):
    """Inputs and outputs of one of our nodes, in the order saved workflows rely on."""

    inputs: tuple[Input, ...]
    outputs: tuple[tuple[str, str], ...]
    """Name and type of each."""

    def widgets(self) -> list[str]:
        """Return the names of the values in `widgets_values`, in order."""
        names = []
        for each in self.inputs:
            if each.is_widget:
                names += [each.name, CONTROL] if each.name == "seed" else [each.name]
        return names


_SIZE = (
    Input("width", "INT", 768),
    Input("height", "INT", 512),
    Input("length", "INT", 121),
    Input("batch_size", "INT", 1),
)
_COND = (Input("positive", "CONDITIONING"), Input("negative", "CONDITIONING"))

OURS: dict[str, NodeSpec] = {
    "K5_LoadModel": NodeSpec(
        (Input("model_name", "COMBO", ""), Input("weight_dtype", "COMBO", "default")),
        (("MODEL", "MODEL"),),
    ),
    "K5_LoadLora": NodeSpec(
        (
            Input("model", "MODEL"),
            Input("lora_name", "COMBO", ""),
            Input("strength", "FLOAT", 1),
            Input("clip", "CLIP"),
        ),
        (("MODEL", "MODEL"), ("CLIP", "CLIP"), ("trigger", "STRING")),
    ),
    "K5_LoadTextEncoders": NodeSpec(
        (
            Input("qwen_name", "COMBO", ""),
            Input("clip_name", "COMBO", "(none)"),
            Input("task", "COMBO", "t2v"),
        ),
        (("CLIP", "CLIP"),),
    ),
    "K5_LoadVAE": NodeSpec((Input("vae_name", "COMBO", ""),), (("VAE", "VAE"),)),
    "K5_TextEncode": NodeSpec(
        (
            Input("clip", "CLIP"),
            Input("text", "STRING", ""),
            Input("task", "COMBO", "t2v"),
            Input("image", "IMAGE"),
        ),
        (("CONDITIONING", "CONDITIONING"),),
    ),
    "K5_ExpandPrompt": NodeSpec(
        (
            Input("clip", "CLIP"),
            Input("prompt", "STRING", ""),
            Input("task", "COMBO", "t2v"),
            Input("language", "COMBO", "English"),
            Input("seed", "INT", 0),
            Input("max_tokens", "INT", 256),
            Input("temperature", "FLOAT", 0.7),
            Input("image", "IMAGE"),
        ),
        (("prompt", "STRING"), ("note", "STRING")),
    ),
    "K5_EmptyLatent": NodeSpec(
        (*_SIZE, Input("seconds", "FLOAT", 0), Input("model", "MODEL")),
        (("LATENT", "LATENT"),),
    ),
    "K5_ImageToVideo": NodeSpec(
        (*_COND, Input("vae", "VAE"), Input("image", "IMAGE"), *_SIZE),
        (("positive", "CONDITIONING"), ("negative", "CONDITIONING"), ("latent", "LATENT")),
    ),
    "K5_FitImage": NodeSpec(
        (
            Input("model", "MODEL"),
            Input("image", "IMAGE"),
            Input("width", "INT", 0),
            Input("height", "INT", 0),
        ),
        (("image", "IMAGE"), ("width", "INT"), ("height", "INT")),
    ),
    "K5_EditImage": NodeSpec(
        (
            *_COND,
            Input("vae", "VAE"),
            Input("image", "IMAGE"),
            Input("batch_size", "INT", 1),
        ),
        (("positive", "CONDITIONING"), ("negative", "CONDITIONING"), ("latent", "LATENT")),
    ),
    "K5_Sampler": NodeSpec(
        (
            Input("model", "MODEL"),
            *_COND,
            Input("latent", "LATENT"),
            Input("seed", "INT", 0),
            Input("cfg", "FLOAT", 0),
            Input("steps", "INT", 0),
            Input("shift", "FLOAT", 0),
            Input("denoise", "FLOAT", 1),
            Input("sigmas", "SIGMAS"),
        ),
        (("latent", "LATENT"),),
    ),
    "K5_NormalizeFirstFrames": NodeSpec(
        (Input("model", "MODEL"), Input("latent", "LATENT")), (("latent", "LATENT"),)
    ),
    "K5_Decode": NodeSpec(
        (Input("vae", "VAE"), Input("latent", "LATENT"), Input("memory_budget_gb", "FLOAT", 0)),
        (("IMAGE", "IMAGE"),),
    ),
}
"""What the converter makes. Inputs that were added to a node later are left at their defaults."""

WIDGETS: dict[str, tuple[str, ...]] = {
    # the official pack (kandinskylab/kandinsky-5, comfyui/nodes_kandinsky.py)
    "Kandinsky5LoadTextEmbedders": ("qwen", "clip", "qwen_quantized"),
    "Kandinsky5LoadDiT": ("dit",),
    "Kandinsky5LoadVAE": ("vae",),
    "Kandinsky5TextEncode": ("prompt",),
    "expand_prompt": ("prompt",),
    "Kandinsky5VAEImageEncode": (),
    "Kandinsky5VAEDecode": (),
    "Kandinsky5Generate": (
        *("steps", "width", "height", "length", "cfg", "scheduler_scale", "precision"),
        *("seed", CONTROL),
    ),
    # ComfyUI's own
    "UNETLoader": ("unet_name", "weight_dtype"),
    "DualCLIPLoader": ("clip_name1", "clip_name2", "type", "device"),
    "VAELoader": ("vae_name",),
    "CLIPTextEncode": ("text",),
    "CLIPTextEncodeKandinsky5": ("clip_l", "qwen25_7b"),
    "Kandinsky5ImageToVideo": ("width", "height", "length", "batch_size"),
    "EmptyHunyuanLatentVideo": ("width", "height", "length", "batch_size"),
    "EmptyLatentImage": ("width", "height", "batch_size"),
    "EmptySD3LatentImage": ("width", "height", "batch_size"),
    "LoraLoaderModelOnly": ("lora_name", "strength_model"),
    "LoraLoader": ("lora_name", "strength_model", "strength_clip"),
    "ModelSamplingSD3": ("shift",),
    "KSampler": ("seed", CONTROL, "steps", "cfg", "sampler_name", "scheduler", "denoise"),
    "VAEDecode": (),
    "VAEDecodeTiled": ("tile_size", "overlap", "temporal_size", "temporal_overlap"),
    "ReplaceVideoLatentFrames": ("index",),
    "NormalizeVideoLatentStart": ("start_frame_count", "reference_frame_count"),
    # kept, but subgraphs and nano set values in them
    "LoadImage": ("image", "upload"),
    "PrimitiveInt": ("value", CONTROL),
    "PrimitiveFloat": ("value",),
    "PrimitiveString": ("value",),
    "PrimitiveStringMultiline": ("value",),
    "PrimitiveBoolean": ("value",),
}
"""Node type -> names of the values that the UI format saves by position."""

SAMPLERS = (
    *("Kandinsky5Generate", "KSampler", "KSamplerAdvanced"),
    *("SamplerCustom", "SamplerCustomAdvanced", "K5_Sampler"),
)
DECODERS = ("Kandinsky5VAEDecode", "VAEDecode", "VAEDecodeTiled", "K5_Decode")
MODEL_LOADERS = {"Kandinsky5LoadDiT": "dit", "UNETLoader": "unet_name"}
"""Type -> the input that names the file."""
IMAGE_CLIP = "kandinsky5_image"
CLIP_TYPES = ("kandinsky5", IMAGE_CLIP)
"""Choices of DualCLIPLoader's type that mean this family."""
ONLY_KANDINSKY = (
    *("Kandinsky5LoadTextEmbedders", "Kandinsky5LoadDiT", "Kandinsky5LoadVAE", "expand_prompt"),
    *("Kandinsky5TextEncode", "Kandinsky5VAEImageEncode", "Kandinsky5VAEDecode"),
    *("Kandinsky5Generate", "CLIPTextEncodeKandinsky5", "Kandinsky5ImageToVideo"),
)
"""Types that are of this family wherever they stand."""
AFTER_SAMPLING = (*DECODERS, "ReplaceVideoLatentFrames", "NormalizeVideoLatentStart")
"""Types that are of this family where a sampler of it is before them."""
