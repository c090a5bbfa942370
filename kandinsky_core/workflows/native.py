"""Rules for ComfyUI's own nodes, as its Kandinsky 5 templates use them.

They cut differently: the shift is a node before the sampler and not an input of it, and what keeps
the first frame is a node after it.
"""

from __future__ import annotations

from .chains import Scope
from .graph import BYPASSED, Node
from .replacement import LOST, Replacement, Rule, loaded_model, make_decode, make_one
from .tables import CONTROL, SAMPLERS


def _unet(node: Node, scope: Scope) -> Replacement:  # noqa: ARG001
    dtype = node.inputs.get("weight_dtype", "default")
    fast = dtype == "fp8_e4m3fn_fast"
    made = make_one(
        "K5_LoadModel",
        model_name=node.inputs.get("unet_name"),
        weight_dtype="fp8_e4m3fn" if fast else dtype,
    )
    if fast:
        made.lost.append("weight_dtype fp8_e4m3fn_fast became fp8_e4m3fn, without fast products")
    return made


def _dual_clip(node: Node, scope: Scope) -> Replacement:
    get = node.inputs.get
    names = [get("clip_name1"), get("clip_name2")]
    if "clip_l" in str(names[0]).lower():  # the native loader takes them in any order
        names.reverse()
    made = make_one(
        "K5_LoadTextEncoders",
        qwen_name=names[0],
        clip_name=names[1],
        task=scope.task(node.id),
    )
    if get("device", "default") != "default":
        made.lost.append(f"device {get('device')} has no counterpart; ComfyUI places the encoders")
    return made


def _vae(node: Node, scope: Scope) -> Replacement:  # noqa: ARG001
    return make_one("K5_LoadVAE", vae_name=node.inputs.get("vae_name"))


def _encode(node: Node, scope: Scope) -> Replacement:
    get = node.inputs.get
    text = get("text", get("qwen25_7b", ""))
    made = make_one("K5_TextEncode", clip=get("clip"), text=text, task=scope.task(node.id))
    if get("clip_l", text) != text:
        made.lost.append(
            "clip_l had a text of its own; K5_TextEncode gives both encoders that of qwen25_7b"
        )
    return made


def _empty_latent(node: Node, scope: Scope) -> Replacement | None:
    ours = {chain.sampler for chain in scope.chains}
    samplers = [each for each in scope.consumers(node.id, 0) if each.type in SAMPLERS]
    if any(each.id not in ours for each in samplers):
        return None  # another model samples it too
    return _made_latent(node, scope)


def _made_latent(node: Node, scope: Scope) -> Replacement:
    below = scope.chains_below(node.id)
    get = node.inputs.get
    return make_one(
        "K5_EmptyLatent",
        width=get("width"),
        height=get("height"),
        length=get("length", 1),
        batch_size=get("batch_size", 1),
        model=loaded_model(below[0], scope) if below else None,
    )


def _image_to_video(node: Node, scope: Scope) -> Replacement:
    if node.inputs.get("start_image") is None:
        made = _made_latent(node, scope)
        conditioning = [node.inputs.get(name, LOST) for name in ("positive", "negative")]
        outputs = {0: conditioning[0], 1: conditioning[1], 2: made.outputs[0], 3: LOST}
        return Replacement(made.nodes, outputs)
    get = node.inputs.get
    made = make_one(
        "K5_ImageToVideo",
        3,
        image=get("start_image"),
        **{name: get(name) for name in ("positive", "negative", "vae")},
        **{name: get(name) for name in ("width", "height", "length", "batch_size")},
    )
    return Replacement(made.nodes, {**made.outputs, 3: LOST})


def _model_sampling(node: Node, scope: Scope) -> Replacement | None:
    below = scope.chains_below(node.id)
    kept = [each for each in below if scope.graph.nodes[each.sampler].type != "KSampler"]
    if kept or not below:
        return None
    return Replacement(outputs={0: node.inputs.get("model", LOST)}, became="the sampler's shift")


def _lora(node: Node, scope: Scope) -> Replacement:  # noqa: ARG001
    get = node.inputs.get
    made = make_one(
        "K5_LoadLora",
        model=get("model"),
        lora_name=get("lora_name"),
        strength=get("strength_model"),
    )
    # LoraLoader's CLIP goes on as it came: these LoRAs hold no weights of the encoders
    return Replacement(made.nodes, {**made.outputs, 1: get("clip", LOST)})


def _ksampler(node: Node, scope: Scope) -> Replacement:
    get = node.inputs.get
    (chain,) = (each for each in scope.chains if each.sampler == node.id)
    above = (scope.graph.nodes[each] for each in chain.ancestors)
    shift = next(
        (
            each.inputs.get("shift")
            for each in above
            if each.type == "ModelSamplingSD3" and each.raw.get("mode") != BYPASSED
        ),
        0,
    )
    made = make_one(
        "K5_Sampler",
        latent=get("latent_image"),
        shift=shift,
        **{name: get(name) for name in ("model", "positive", "negative")},
        **{name: get(name) for name in ("seed", CONTROL, "cfg", "steps", "denoise")},
    )
    how = (get("sampler_name", "euler"), get("scheduler", "simple"))
    if how != ("euler", "simple"):
        made.lost.append(
            f"sampler {how[0]} with scheduler {how[1]} has no counterpart; K5_Sampler takes plain "
            "Euler steps, as the models were trained for"
        )
    return made


def _replace_frames(node: Node, scope: Scope) -> Replacement | None:
    source, get = node.inputs.get("source"), node.inputs.get
    encoder = scope.graph.nodes.get(getattr(source, "node", ""))
    if not encoder or encoder.type != "Kandinsky5ImageToVideo" or source.slot != 3:
        return None
    made = Replacement(
        outputs={0: get("destination", LOST)}, became="K5_Sampler, which keeps the first frame"
    )
    if get("index", 0) != 0:
        made.lost.append(f"index {get('index')} has no counterpart; the image is the first frame")
    return made


def _normalize(node: Node, scope: Scope) -> Replacement:
    chain, get = scope.chain_above(node.id), node.inputs.get
    made = make_one(
        "K5_NormalizeFirstFrames",
        model=loaded_model(chain, scope) if chain else None,
        latent=get("latent"),
    )
    counts = (get("start_frame_count", 4), get("reference_frame_count", 5))
    if counts != (4, 5):
        made.lost.append(f"frame counts {counts} have no counterpart; ours are 4 and 5")
    return made


NATIVE: dict[str, Rule] = {
    "UNETLoader": _unet,
    "DualCLIPLoader": _dual_clip,
    "VAELoader": _vae,
    "CLIPTextEncode": _encode,
    "CLIPTextEncodeKandinsky5": _encode,
    "Kandinsky5ImageToVideo": _image_to_video,
    "EmptyHunyuanLatentVideo": _empty_latent,
    "EmptyLatentImage": _empty_latent,
    "EmptySD3LatentImage": _empty_latent,
    "LoraLoader": _lora,
    "LoraLoaderModelOnly": _lora,
    "ModelSamplingSD3": _model_sampling,
    "KSampler": _ksampler,
    "VAEDecode": make_decode("vae", "samples"),
    "VAEDecodeTiled": make_decode("vae", "samples"),
    "ReplaceVideoLatentFrames": _replace_frames,
    "NormalizeVideoLatentStart": _normalize,
}
