"""Small workflows of the official pack's nodes, in the form that the page saves: our own making.

Names, sockets and the order of saved values are those that kandinskylab/kandinsky-5 declares
(comfyui/nodes_kandinsky.py); files, prompts, sizes and wiring are made up here. They differ in
every number, so that two exchanged values show.
"""

from __future__ import annotations

from typing import Any

_TEXT = (("model", "MODEL"), ("gen_type", "ENUM"), ("image", "IMAGE"))
_DIT = (("model", "MODEL"), ("conf", "CONFIG"), ("gen_type", "ENUM"))
_CONDITIONS = {
    "positive_emb": ("positive", 0),
    "positive_clip": ("positive", 1),
    "negative_emb": ("negative", 0),
    "negative_clip": ("negative", 1),
}
SOCKETS: dict[str, tuple[tuple[tuple[str, str], ...], tuple[tuple[str, str], ...]]] = {
    "Kandinsky5LoadDiT": ((), _DIT),
    "Kandinsky5LoadTextEmbedders": ((), (("model", "MODEL"),)),
    "Kandinsky5LoadVAE": ((), (("model", "MODEL"),)),
    "expand_prompt": (_TEXT, (("exp_prompt", "PROMPT"), ("log", "STRING"))),
    "Kandinsky5TextEncode": (
        (*_TEXT, ("extended_text", "PROMPT")),
        (("TEXT", "CONDITION"), ("POOLED", "CONDITION")),
    ),
    "Kandinsky5VAEImageEncode": (
        (("model", "MODEL"), ("image", "IMAGE"), ("config", "CONFIG")),
        (("LATENT", "LATENT"),),
    ),
    "Kandinsky5Generate": (
        (
            *(("model", "MODEL"), ("config", "CONFIG")),
            *((name, "CONDITION") for name in _CONDITIONS),
            *(("gen_type", "ENUM"), ("image_latent", "LATENT")),
        ),
        (("latent", "LATENT"),),
    ),
    "Kandinsky5VAEDecode": ((("model", "MODEL"), ("latent", "LATENT")), (("IMAGE", "IMAGE"),)),
    "LoadImage": ((), (("IMAGE", "IMAGE"), ("MASK", "MASK"))),
    "SaveImage": ((("images", "IMAGE"),), ()),
    "SaveAnimatedWEBP": ((("images", "IMAGE"),), ()),
}
"""Type -> names and types of its input sockets and of its outputs."""
COLUMN, ROW = 420, 440  # pixels between two nodes
FIRST_NODE, FIRST_LINK = 21, 301

Row = tuple[str, list[Any], dict[str, tuple[str, int]]]
"""A node's type, its saved values, and its connected inputs as (row, output)."""


def _rows(
    task: str,
    *,
    dit: str,
    vae: str,
    quantized: bool,
    prompts: tuple[str, str],
    generate: list[Any],
    save: tuple[str, list[Any]],
    picture: str = "",
) -> dict[str, Row]:
    """Return the rows of one workflow; with a picture, it is encoded and shown to who rewrites."""
    text = {"model": ("text", 0), "gen_type": ("dit", 2)}
    shown = {"image": ("picture", 0)} if picture else {}
    seen = shown if task == "I2I" else {}
    rows: dict[str, Row] = {
        # what reads stands before what it reads, as files do that somebody worked on
        "decode": ("Kandinsky5VAEDecode", [], {"model": ("vae", 0), "latent": ("generate", 0)}),
        "save": (*save, {"images": ("decode", 0)}),
        "text": ("Kandinsky5LoadTextEmbedders", ["qwen_folder", "clip_folder", quantized], {}),
        "positive": (
            "Kandinsky5TextEncode",
            [""],
            {**text, **seen, "extended_text": ("expand", 0)},
        ),
        "negative": ("Kandinsky5TextEncode", [prompts[1]], {**text, **seen}),
        "expand": ("expand_prompt", [prompts[0]], {**text, **shown}),
        "vae": ("Kandinsky5LoadVAE", [vae], {}),
        "generate": (
            "Kandinsky5Generate",
            generate,
            {
                **{"model": ("dit", 0), "config": ("dit", 1), "gen_type": ("dit", 2)},
                **_CONDITIONS,
                **({"image_latent": ("encode", 0)} if picture else {}),
            },
        ),
        "dit": ("Kandinsky5LoadDiT", [dit], {}),
    }
    if picture:
        encoded = {"model": ("vae", 0), "config": ("dit", 1), **shown}
        rows["encode"] = ("Kandinsky5VAEImageEncode", [], encoded)
        rows["picture"] = ("LoadImage", [picture, "image"], {})
    return rows


_WEBP = ("SaveAnimatedWEBP", ["clips/small", 24, True, 80, "fastest"])
_PNG = ("SaveImage", ["stills/small"])
SMALL = {
    "small_T2V": _rows(
        "T2V",
        dit="kandinsky5lite_t2v_sft_10s.safetensors",
        vae="video_vae",
        quantized=False,
        prompts=("a paper boat drifts past a lighthouse", "still picture, text"),
        generate=[41, 640, 384, 49, 4.5, 8, "bfloat16", 17, "fixed"],
        save=_WEBP,
    ),
    "small_I2V": _rows(
        "I2V",
        dit="kandinsky5lite_i2v_5s.safetensors",
        vae="video_vae",
        quantized=True,
        prompts=("the boat begins to move", "flicker"),
        generate=[42, 672, 416, 53, 5.5, 9, "float32", 18, "increment"],
        save=_WEBP,
        picture="boat.png",
    ),
    "small_T2I": _rows(
        "T2I",
        dit="kandinsky5lite_t2i.safetensors",
        vae="image_vae",
        quantized=True,
        prompts=("a paper boat in a bottle", ""),
        generate=[43, 704, 448, 57, 3.25, 4, "bfloat16", 19, "decrement"],
        save=_PNG,
    ),
    "small_I2I": _rows(
        "I2I",
        dit="kandinsky5lite_i2i.safetensors",
        vae="image_vae",
        quantized=False,
        prompts=("paint the boat red", "smeared colours"),
        generate=[44, 736, 480, 61, 2.75, 6, "bfloat16", 20, "randomize"],
        save=_PNG,
        picture="bottle.png",
    ),
}


def small_workflow(name: str) -> dict[str, Any]:
    """Build one of `SMALL`, anew each time, as a file in the UI format holds it."""
    rows = SMALL[name]
    ids = {row: FIRST_NODE + place for place, row in enumerate(rows)}
    nodes = [_node(ids[row], *rows[row][:2], place) for place, row in enumerate(rows)]
    by_id = {node["id"]: node for node in nodes}
    links: list[list[Any]] = []
    for row, (_, _, given) in rows.items():
        for entry, (source, slot) in given.items():
            target_slot, socket = next(
                (place, each)
                for place, each in enumerate(by_id[ids[row]]["inputs"])
                if each["name"] == entry
            )
            output = by_id[ids[source]]["outputs"][slot]
            link = FIRST_LINK + len(links)
            socket["link"] = link
            output["links"] = [*(output["links"] or []), link]
            links.append([link, ids[source], slot, ids[row], target_slot, output["type"]])
    return {
        "last_node_id": max(by_id),
        "last_link_id": links[-1][0],
        "nodes": nodes,
        "links": links,
        "groups": [],
        "config": {},
        "extra": {},
        "version": 0.4,
    }


def _node(node_id: int, node_type: str, values: list[Any], place: int) -> dict[str, Any]:
    inputs, outputs = SOCKETS[node_type]
    return {
        "id": node_id,
        "type": node_type,
        "pos": [COLUMN * (place % 4), ROW * (place // 4)],
        "size": [320, 220],
        "flags": {},
        "order": place,
        "mode": 0,
        "inputs": [{"name": name, "type": kind, "link": None} for name, kind in inputs],
        "outputs": [{"name": name, "type": kind, "links": None} for name, kind in outputs],
        "properties": {"Node name for S&R": node_type},
        "widgets_values": list(values),
    }
