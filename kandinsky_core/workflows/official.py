"""Rules for the official pack (kandinskylab/kandinsky-5, comfyui/nodes_kandinsky.py).

It cuts differently: its Generate makes its own latent and takes its size from the encoded image
where there is one; tokens and pooled vector are two sockets; names of files are names of folders.
"""

from __future__ import annotations

from typing import Any

from .chains import Chain, Scope
from .graph import Link, Node
from .replacement import (
    LOST,
    NewNode,
    Out,
    Replacement,
    Rule,
    loaded_model,
    make_decode,
    make_one,
)
from .tables import CONTROL

FITTED = 1
"""First of the outputs that the rules give Kandinsky5VAEImageEncode: image, width, height."""


def _text_encoders(node: Node, scope: Scope) -> Replacement:
    get = node.inputs.get
    made = make_one(
        "K5_LoadTextEncoders",
        qwen_name=get("qwen"),
        clip_name=get("clip"),
        task=scope.task(node.id),
    )
    if get("qwen_quantized"):
        made.lost.append(
            "Qwen is not quantized while it loads; choose a quantized file as qwen_name for that"
        )
    return made


def _model(node: Node, scope: Scope) -> Replacement:  # noqa: ARG001  rules are alike
    made = make_one("K5_LoadModel", model_name=node.inputs.get("dit"), weight_dtype="default")
    return Replacement(made.nodes, {**made.outputs, 1: LOST, 2: LOST})


def _vae(node: Node, scope: Scope) -> Replacement:  # noqa: ARG001
    return make_one("K5_LoadVAE", vae_name=node.inputs.get("vae"))


def _encode(node: Node, scope: Scope) -> Replacement:
    get, task = node.inputs.get, scope.task(node.id)
    extended = get("extended_text")
    image, lost = get("image"), []
    if image is not None and task == "i2i":
        image = _fitted(image, scope, node.id)
    elif image is not None:
        image = None
        lost.append(f"its image is not connected, K5_TextEncode reads one for i2i only, not {task}")
    made = make_one(
        "K5_TextEncode",
        clip=get("model"),
        text=get("prompt", "") if extended is None else extended,
        task=task,
        image=image,
    )
    # tokens and pooled vector are one CONDITIONING
    return Replacement(made.nodes, {0: made.outputs[0], 1: made.outputs[0]}, lost=lost)


def _expand(node: Node, scope: Scope) -> Replacement:
    made = make_one(
        "K5_ExpandPrompt",
        clip=node.inputs.get("model"),
        prompt=node.inputs.get("prompt", ""),
        task=scope.task(node.id),
        image=node.inputs.get("image"),
    )
    # its log is the expanded prompt again
    return Replacement(made.nodes, {0: made.outputs[0], 1: made.outputs[0]})


def _fitted(image: Link, scope: Scope, encode: str) -> Link:
    """Return the image as the chain's VAE node cuts it, where there is one: Qwen sees the same
    crop."""
    for chain in scope.chains_below(encode):
        for each in chain.ancestors:
            node = scope.graph.nodes[each]
            if node.type == "Kandinsky5VAEImageEncode" and node.inputs.get("image") == image:
                return Link(each, FITTED)
    return image


def _image(node: Node, scope: Scope) -> Replacement:
    below = scope.chains_below(node.id)
    made = make_one(
        "K5_FitImage",
        3,
        model=loaded_model(below[0], scope) if below else None,
        image=node.inputs.get("image"),
        width=0,
        height=0,
    )
    # its latent is made later; what is asked for here is the picture and its size
    fitted = {slot + FITTED: out for slot, out in made.outputs.items()}
    return Replacement(made.nodes, {0: LOST, **fitted})


def _start(node: Node, chain: Chain, scope: Scope) -> tuple[NewNode, list[Any], list[str]]:
    """Return what a sampler starts from: its node, the three inputs it gives, and what could not
    be."""
    get = node.inputs.get
    conditioning = {"positive": get("positive_emb"), "negative": get("negative_emb")}
    size = {name: get(name) for name in ("width", "height")}
    # the official node makes one frame of any length where it makes an image
    length = get("length") if chain.task in ("t2v", "i2v") else 1
    encoder = scope.graph.nodes.get(getattr(get("image_latent"), "node", ""))
    if encoder is None or encoder.type != "Kandinsky5VAEImageEncode":
        model = loaded_model(chain, scope)
        latent = NewNode(
            "K5_EmptyLatent", {**size, "length": length, "batch_size": 1, "model": model}
        )
        lost = [f"the image latent of {encoder.label} cannot be connected"] if encoder else []
        return latent, [*conditioning.values(), Out(latent)], lost
    fitted = {name: Link(encoder.id, FITTED + slot) for slot, name in enumerate(("image", *size))}
    inputs = {**conditioning, "vae": encoder.inputs.get("model"), "batch_size": 1}
    if chain.task == "i2i":
        latent = NewNode("K5_EditImage", {**inputs, "image": fitted["image"]})
    else:
        latent = NewNode("K5_ImageToVideo", {**inputs, **fitted, "length": length})
    ignored = " and ".join(
        name if isinstance(value, Link) else f"{name} {value}" for name, value in size.items()
    )
    lost = [
        f"{ignored} had no effect beside an image and are left out; K5_FitImage chooses the size, "
        "or set it there"
    ]
    return latent, [Out(latent, slot) for slot in range(3)], lost


def _generate(node: Node, scope: Scope) -> Replacement:
    get = node.inputs.get
    (chain,) = (each for each in scope.chains if each.sampler == node.id)
    latent, given, lost = _start(node, chain, scope)
    sampler = NewNode(
        "K5_Sampler",
        {
            "model": get("model"),
            **dict(zip(("positive", "negative", "latent"), given, strict=True)),
            **{name: get(name) for name in ("seed", CONTROL, "cfg", "steps")},
            "shift": get("scheduler_scale"),
            "denoise": 1,
        },
    )
    if get("precision") is not None:
        lost.append(
            f"precision {get('precision')} is not carried over; K5_LoadModel's weight_dtype is it"
        )
    if latent.type != "K5_ImageToVideo":
        return Replacement([latent, sampler], {0: Out(sampler)}, lost=lost)
    # the official pipeline does this after sampling, its ComfyUI node does not
    normalize = NewNode(
        "K5_NormalizeFirstFrames", {"model": loaded_model(chain, scope), "latent": Out(sampler)}
    )
    return Replacement([latent, normalize, sampler], {0: Out(normalize)}, lost=lost)


OFFICIAL: dict[str, Rule] = {
    "Kandinsky5LoadTextEmbedders": _text_encoders,
    "Kandinsky5LoadDiT": _model,
    "Kandinsky5LoadVAE": _vae,
    "Kandinsky5TextEncode": _encode,
    "expand_prompt": _expand,
    "Kandinsky5VAEImageEncode": _image,
    "Kandinsky5Generate": _generate,
    "Kandinsky5VAEDecode": make_decode("model", "latent"),
}
