"""Rules for the official pack (kandinskylab/kandinsky-5, comfyui/nodes_kandinsky.py).

It cuts differently: its Generate makes its own latent and takes its size from the encoded image
where there is one; tokens and pooled vector are two sockets; names of files are names of folders.
"""

from __future__ import annotations

from .graph import Link, Node
from .plan import Plan
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


def _official_text_encoders(node: Node, plan: Plan) -> Replacement:
    get = node.inputs.get
    made = make_one(
        "K5_LoadTextEncoders",
        qwen_name=get("qwen"),
        clip_name=get("clip"),
        task=plan.task(node.id),
    )
    if get("qwen_quantized"):
        made.lost.append(
            "Qwen is not quantized while it loads; choose a quantized file as qwen_name for that"
        )
    return made


def _official_model(node: Node, plan: Plan) -> Replacement:  # noqa: ARG001  rules are alike
    made = make_one("K5_LoadModel", model_name=node.inputs.get("dit"), weight_dtype="default")
    return Replacement(made.nodes, {**made.outputs, 1: LOST, 2: LOST})


def _official_vae(node: Node, plan: Plan) -> Replacement:  # noqa: ARG001
    return make_one("K5_LoadVAE", vae_name=node.inputs.get("vae"))


def _official_encode(node: Node, plan: Plan) -> Replacement:
    get, task = node.inputs.get, plan.task(node.id)
    extended = get("extended_text")
    image, lost = get("image"), []
    if image is not None and task == "i2i":
        image = _fitted(image, plan, node.id)
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


def _official_expand(node: Node, plan: Plan) -> Replacement:
    made = make_one(
        "K5_ExpandPrompt",
        clip=node.inputs.get("model"),
        prompt=node.inputs.get("prompt", ""),
        task=plan.task(node.id),
        image=node.inputs.get("image"),
    )
    # its log is the expanded prompt again
    return Replacement(made.nodes, {0: made.outputs[0], 1: made.outputs[0]})


def _fitted(image: Link, plan: Plan, encode: str) -> Link:
    """The image as the chain's VAE node cuts it, where there is one: Qwen sees the same crop."""
    for chain in plan.chains_below(encode):
        for each in chain.ancestors:
            node = plan.graph.nodes[each]
            if node.type == "Kandinsky5VAEImageEncode" and node.inputs.get("image") == image:
                return Link(each, FITTED)
    return image


def _official_image(node: Node, plan: Plan) -> Replacement:
    below = plan.chains_below(node.id)
    made = make_one(
        "K5_FitImage",
        3,
        model=loaded_model(below[0], plan) if below else None,
        image=node.inputs.get("image"),
        width=0,
        height=0,
    )
    # its latent is made later; what is asked for here is the picture and its size
    fitted = {slot + FITTED: out for slot, out in made.outputs.items()}
    return Replacement(made.nodes, {0: LOST, **fitted})


def _official_generate(node: Node, plan: Plan) -> Replacement:
    get = node.inputs.get
    (chain,) = (each for each in plan.chains if each.sampler == node.id)
    conditioning = {"positive": get("positive_emb"), "negative": get("negative_emb")}
    encoder = plan.graph.nodes.get(getattr(get("image_latent"), "node", ""))
    lost = []
    size = {name: get(name) for name in ("width", "height")}
    length = get("length") if chain.task in ("t2v", "i2v") else 1
    if encoder is None or encoder.type != "Kandinsky5VAEImageEncode":
        latent = NewNode(
            "K5_EmptyLatent",
            {
                **size,
                "length": length,
                "batch_size": 1,
                "seconds": 0,
                "model": loaded_model(chain, plan),
            },
        )
        outs = [*conditioning.values(), Out(latent)]
        if encoder is not None:
            lost.append(f"the image latent of {encoder.label} cannot be connected")
    else:
        fitted = {
            name: Link(encoder.id, FITTED + slot) for slot, name in enumerate(("image", *size))
        }
        shared = {**conditioning, "vae": encoder.inputs.get("model"), "batch_size": 1}
        if chain.task == "i2i":
            latent = NewNode("K5_EditImage", {**shared, "image": fitted["image"]})
        else:
            latent = NewNode("K5_ImageToVideo", {**shared, **fitted, "length": length})
        outs = [Out(latent, slot) for slot in range(3)]
        if all(isinstance(each, int) for each in size.values()):
            lost.append(
                f"width {size['width']} and height {size['height']} had no effect beside an image "
                "and are left out; K5_FitImage chooses the size, or set it there"
            )
    made = [latent]
    if get("precision") is not None:
        lost.append(
            f"precision {get('precision')} is not carried over; K5_LoadModel's weight_dtype is it"
        )
    sampler = NewNode(
        "K5_Sampler",
        {
            "model": get("model"),
            **dict(zip(("positive", "negative", "latent"), outs, strict=True)),
            **{name: get(name) for name in ("seed", CONTROL, "cfg", "steps")},
            "shift": get("scheduler_scale"),
            "denoise": 1,
        },
    )
    result = sampler
    if latent.type == "K5_ImageToVideo":
        # the official pipeline does it, its ComfyUI node does not
        result = NewNode(
            "K5_NormalizeFirstFrames", {"model": loaded_model(chain, plan), "latent": Out(sampler)}
        )
        made.append(result)
    return Replacement([*made, sampler], {0: Out(result)}, lost=lost)


OFFICIAL: dict[str, Rule] = {
    "Kandinsky5LoadTextEmbedders": _official_text_encoders,
    "Kandinsky5LoadDiT": _official_model,
    "Kandinsky5LoadVAE": _official_vae,
    "Kandinsky5TextEncode": _official_encode,
    "expand_prompt": _official_expand,
    "Kandinsky5VAEImageEncode": _official_image,
    "Kandinsky5Generate": _official_generate,
    "Kandinsky5VAEDecode": make_decode("model", "latent"),
}
