"""The workflow converter on the official pack's workflows, ComfyUI's templates and small cases.

Expected values were read from those files by hand. The official pack's files are not part of the
project: small workflows of its nodes stand in for them (`official_pack.py`), in the same tests.
"""

from __future__ import annotations

import copy
import json

import pytest

from kandinsky_core.workflows import convert_workflow
from kandinsky_core.workflows.tables import OURS
from tooling.environment import ROOT

CONTRACT = json.loads((ROOT / "tests" / "nodes" / "contract.json").read_text(encoding="utf-8"))
NATIVE = {"SaveImage", "SaveAnimatedWEBP", "SaveVideo", "CreateVideo", "LoadImage"}
NATIVE |= {"ImageScale", "PrimitiveInt", "MarkdownNote"}
NEGATIVE = (
    "Static, 2D cartoon, cartoon, 2d animation, paintings, images, worst quality, low quality, "
    "ugly, deformed, walking backwards"
)
NO_BLUR = (
    "blurry, low resolution, low quality, jpeg artifacts, noise, grainy, out of focus, distorted, "
    "deformed, bad anatomy, bad cluttered background, messy background"
)
QWEN, CLIP_L = "qwen_2.5_vl_7b_fp8_scaled.safetensors", "clip_l.safetensors"
HUNYUAN = "hunyuan_video_vae_bf16.safetensors"

OFFICIAL = {
    "kandinsky5_lite_T2V": {
        "K5_LoadModel": ["kandinsky5lite_t2v_sft_5s.safetensors", "default"],
        "K5_LoadTextEncoders": ["text_encoder", "text_encoder2", "t2v"],
        "K5_LoadVAE": ["hunyan_vae"],
        "K5_EmptyLatent": [768, 512, 121, 1, 0],
        "K5_Sampler": [903, "randomize", 5, 50, 10, 1],
        "K5_Decode": [0],
        "SaveAnimatedWEBP": ["ComfyUI", 24, False, 100, "default"],
        "positive": "A heroic astronaut in a sleek, futuristic",
        "negative": NEGATIVE,
    },
    "kandinsky5_lite_I2V": {
        "K5_LoadModel": ["kandinsky5lite_i2v_5s.safetensors", "default"],
        "K5_LoadTextEncoders": ["text_encoder", "text_encoder2", "i2v"],
        "K5_LoadVAE": ["hunyan_vae"],
        "K5_FitImage": [0, 0],
        "K5_ImageToVideo": [768, 512, 121, 1],
        "K5_Sampler": [800, "randomize", 5, 50, 10, 1],
        "K5_NormalizeFirstFrames": [],
        "K5_Decode": [0],
        "LoadImage": ["347491199578880.jpeg", "image"],
        "SaveAnimatedWEBP": ["ComfyUI", 24, False, 100, "default"],
        "positive": "Dragon breaths fire",
        "negative": NEGATIVE,
    },
    "kandinsky5_lite_T2I": {
        "K5_LoadModel": ["kandinsky5lite_t2i.safetensors", "default"],
        "K5_LoadTextEncoders": ["text_encoder", "text_encoder2", "t2i"],
        "K5_LoadVAE": ["flux_vae"],
        "K5_EmptyLatent": [768, 512, 1, 1, 0],  # the official node makes one frame of 121 too
        "K5_Sampler": [1880, "randomize", 5, 50, 10, 1],
        "K5_Decode": [0],
        "SaveImage": ["ComfyUI"],
        "positive": "Crocodile flying at the space ",
        "negative": NO_BLUR,
    },
    "kandinsky5_lite_I2I": {
        "K5_LoadModel": ["kandinsky5lite_i2i.safetensors", "default"],
        "K5_LoadTextEncoders": ["text_encoder", "text_encoder2", "i2i"],
        "K5_LoadVAE": ["flux_vae"],
        "K5_FitImage": [0, 0],
        "K5_EditImage": [1],
        "K5_Sampler": [1647, "randomize", 3.5, 50, 3, 1],
        "K5_Decode": [0],
        "LoadImage": ["cat_in_hat.png", "image"],
        "SaveImage": ["ComfyUI"],
        "positive": "Replace the cat with a husky, leave the rest unchanged",
        "negative": NO_BLUR,
    },
}
TEMPLATES = {
    "video_kandinsky5_t2v": {
        "K5_LoadModel": ["kandinsky5lite_t2v_sft_5s.safetensors", "default"],
        "K5_LoadTextEncoders": [QWEN, CLIP_L, "t2v"],
        "K5_LoadVAE": [HUNYUAN],
        "K5_EmptyLatent": [768, 512, 121, 1, 0],
        "K5_Sampler": [102704842425568, "randomize", 5, 50, 5, 1],
        "K5_Decode": [0],
        "CreateVideo": [24],
        "SaveVideo": ["video/Kandinsky5", "mp4", "h264"],
        "positive": "Rim light, side light, soft light, medium close-up, dusk",
        "negative": "",
    },
    "video_kandinsky5_i2v": {
        "K5_LoadModel": ["kandinsky5lite_i2v_5s.safetensors", "default"],
        "K5_LoadTextEncoders": [QWEN, CLIP_L, "i2v"],
        "K5_LoadVAE": [HUNYUAN],
        "K5_ImageToVideo": [768, 512, 121, 1],
        "K5_Sampler": [611409204875324, "randomize", 5, 50, 5, 1],
        "K5_NormalizeFirstFrames": [],
        "K5_Decode": [0],
        "LoadImage": ["crystal_flower.png", "image"],
        "ImageScale": ["lanczos", 512, 512, "center"],
        "CreateVideo": [24],
        "SaveVideo": ["video/Kandinsky5", "mp4", "h264"],
        "positive": "Cinematic dynamic scene in deep blue dream haze",
        "negative": "",
    },
    "image_kandinsky5_t2i": {
        "K5_LoadModel": ["kandinsky5lite_t2i.safetensors", "default"],
        "K5_LoadTextEncoders": [QWEN, CLIP_L, "t2i"],
        "K5_LoadVAE": ["ae.safetensors"],
        "K5_EmptyLatent": [1024, 1024, 1, 1, 0],
        "K5_Sampler": [297935044336751, "randomize", 3.5, 50, 3, 1],
        "K5_Decode": [0],
        "SaveImage": ["Kandinsky5"],
        "positive": "A three-quarter side profile shot captured from a slightly low",
        "negative": "",
    },
}
SMALL = {
    "small_T2V": {
        "K5_LoadModel": ["kandinsky5lite_t2v_sft_10s.safetensors", "default"],
        "K5_LoadTextEncoders": ["qwen_folder", "clip_folder", "t2v"],
        "K5_LoadVAE": ["video_vae"],
        "K5_EmptyLatent": [640, 384, 49, 1, 0],
        "K5_Sampler": [17, "fixed", 4.5, 41, 8, 1],
        "K5_Decode": [0],
        "SaveAnimatedWEBP": ["clips/small", 24, True, 80, "fastest"],
        "positive": "a paper boat drifts past a lighthouse",
        "negative": "still picture, text",
    },
    "small_I2V": {
        "K5_LoadModel": ["kandinsky5lite_i2v_5s.safetensors", "default"],
        "K5_LoadTextEncoders": ["qwen_folder", "clip_folder", "i2v"],
        "K5_LoadVAE": ["video_vae"],
        "K5_FitImage": [0, 0],
        # width and height come from K5_FitImage; what is saved beside them are the defaults
        "K5_ImageToVideo": [768, 512, 53, 1],
        "K5_Sampler": [18, "increment", 5.5, 42, 9, 1],
        "K5_NormalizeFirstFrames": [],
        "K5_Decode": [0],
        "LoadImage": ["boat.png", "image"],
        "SaveAnimatedWEBP": ["clips/small", 24, True, 80, "fastest"],
        "positive": "the boat begins to move",
        "negative": "flicker",
    },
    "small_T2I": {
        "K5_LoadModel": ["kandinsky5lite_t2i.safetensors", "default"],
        "K5_LoadTextEncoders": ["qwen_folder", "clip_folder", "t2i"],
        "K5_LoadVAE": ["image_vae"],
        "K5_EmptyLatent": [704, 448, 1, 1, 0],  # one frame, whatever length was saved
        "K5_Sampler": [19, "decrement", 3.25, 43, 4, 1],
        "K5_Decode": [0],
        "SaveImage": ["stills/small"],
        "positive": "a paper boat in a bottle",
        "negative": "",
    },
    "small_I2I": {
        "K5_LoadModel": ["kandinsky5lite_i2i.safetensors", "default"],
        "K5_LoadTextEncoders": ["qwen_folder", "clip_folder", "i2i"],
        "K5_LoadVAE": ["image_vae"],
        "K5_FitImage": [0, 0],
        "K5_EditImage": [1],
        "K5_Sampler": [20, "randomize", 2.75, 44, 6, 1],
        "K5_Decode": [0],
        "LoadImage": ["bottle.png", "image"],
        "SaveImage": ["stills/small"],
        "positive": "paint the boat red",
        "negative": "smeared colours",
    },
}
CASES = OFFICIAL | SMALL | TEMPLATES

every_file = pytest.mark.parametrize("name", CASES)


def both(task):
    """Return the official pack's own file of a task and the small one."""
    return pytest.mark.parametrize("name", [f"kandinsky5_lite_{task}", f"small_{task}"])


def wires(workflow):
    """Links as (source type, output, target type, input); checks both ends on the way."""
    nodes = {node["id"]: node for node in workflow["nodes"]}
    assert len(nodes) == len(workflow["nodes"])
    found = set()
    for link_id, source, slot, target, target_slot, kind in workflow["links"]:
        output = nodes[source]["outputs"][slot]
        entry = nodes[target]["inputs"][target_slot]
        assert link_id in output["links"]
        assert entry["link"] == link_id
        assert output["type"] == entry["type"] == kind
        found.add((nodes[source]["type"], output["name"], nodes[target]["type"], entry["name"]))
    named = [i["link"] for n in nodes.values() for i in n.get("inputs", []) if i["link"]]
    given = [each for n in nodes.values() for o in n["outputs"] for each in o["links"] or []]
    assert sorted(named) == sorted(given) == sorted(link[0] for link in workflow["links"])
    return found


def of_type(workflow, node_type):
    (node,) = (each for each in workflow["nodes"] if each["type"] == node_type)
    return node


def sources(workflow, node, name):
    """Return the node that feeds an input."""
    (entry,) = (each for each in node["inputs"] if each["name"] == name)
    (link,) = (each for each in workflow["links"] if each[0] == entry["link"])
    (source,) = (each for each in workflow["nodes"] if each["id"] == link[1])
    return source


@every_file
def test_file_becomes_our_nodes_with_its_values(foreign_workflow, name):
    workflow, _ = convert_workflow(foreign_workflow(name))
    wires(workflow)
    expected = dict(CASES[name])
    prompts = expected.pop("positive"), expected.pop("negative")
    for node_type, values in expected.items():
        assert of_type(workflow, node_type)["widgets_values"] == values, node_type
    types = [node["type"] for node in workflow["nodes"]]
    others = set(types) - set(expected)
    assert others <= {"K5_TextEncode", "K5_ExpandPrompt", "PrimitiveInt", "MarkdownNote"}
    assert set(types) <= NATIVE | set(OURS)
    assert "definitions" not in workflow

    consumer = next((each for each in types if each in ("K5_ImageToVideo", "K5_EditImage")), None)
    node = of_type(workflow, consumer or "K5_Sampler")
    task = expected["K5_LoadTextEncoders"][2]
    for side, text in zip(("positive", "negative"), prompts, strict=True):
        encode = sources(workflow, node, side)
        assert encode["type"] == "K5_TextEncode"
        assert encode["widgets_values"][1] == task
        written = encode["widgets_values"][0]
        if side == "positive" and name not in TEMPLATES:
            assert written == ""
            expand = sources(workflow, encode, "text")
            written, *settings = expand["widgets_values"]
            assert settings == [task, "English", 0, "fixed", 256, 0.7]
        assert written.startswith(text)
        assert bool(written) == bool(text)


@every_file
def test_nothing_is_dropped_without_a_word(foreign_workflow, name):
    original = foreign_workflow(name)
    before = copy.deepcopy(original)
    workflow, report = convert_workflow(original)
    assert original == before
    told = "\n".join(report.mapped + report.kept + report.lost)
    inner = (original.get("definitions") or {}).get("subgraphs") or []
    for node in [*original["nodes"], *(node for part in inner for node in part["nodes"])]:
        is_subgraph = any(part["id"] == node["type"] for part in inner)
        kind = "Subgraph" if is_subgraph else node["type"]
        assert f"{kind} " in told
        assert f" {node['id']}" in told
    assert all(line.endswith(".") for line in told.splitlines())
    kept = {node["type"] for node in workflow["nodes"] if not node["type"].startswith("K5_")}
    assert all(any(line.startswith(f"{each} ") for line in report.kept) for each in kept)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("kandinsky5_lite_T2V", ["precision bfloat16 is not carried over"]),
        ("kandinsky5_lite_I2V", ["width 768 and height 512", "Qwen is not quantized"]),
        ("small_T2V", ["precision bfloat16 is not carried over"]),
        ("small_I2V", ["width 672 and height 416", "Qwen is not quantized", "precision float32"]),
        ("video_kandinsky5_t2v", ["euler_ancestral with scheduler beta has no counterpart"]),
    ],
)
def test_what_has_no_counterpart_is_named(foreign_workflow, name, words):
    lost = "\n".join(convert_workflow(foreign_workflow(name)).report.lost)
    assert [each for each in words if each not in lost] == []


@both("T2V")
def test_official_text_to_video_is_wired_like_our_own_workflow(foreign_workflow, name):
    workflow, _ = convert_workflow(foreign_workflow(name))
    own = json.loads((ROOT / "workflows" / "text_to_video.json").read_text(encoding="utf-8"))
    beside = ("K5_Settings", "CreateVideo", "SaveVideo")  # of the file that is written
    through = ("K5_Settings", "model")  # the loader's model, on its way to the same inputs
    straight = {
        ("K5_LoadModel", "MODEL", *link[2:]) if link[:2] == through else link for link in wires(own)
    }
    ours = {link for link in straight if not {link[0], link[2]} & set(beside)}
    saved = ("K5_Decode", "IMAGE", "SaveAnimatedWEBP", "images")
    expanded = {
        ("K5_LoadTextEncoders", "CLIP", "K5_ExpandPrompt", "clip"),
        ("K5_ExpandPrompt", "prompt", "K5_TextEncode", "text"),
    }
    assert wires(workflow) == ours | expanded | {saved}


@both("I2V")
def test_official_image_to_video_takes_size_and_picture_from_one_crop(foreign_workflow, name):
    found = wires(convert_workflow(foreign_workflow(name)).workflow)
    fitted = {link for link in found if link[0] == "K5_FitImage"}
    assert fitted == {
        ("K5_FitImage", each, "K5_ImageToVideo", each) for each in ("image", "width", "height")
    }
    assert ("K5_Sampler", "latent", "K5_NormalizeFirstFrames", "latent") in found
    assert ("K5_NormalizeFirstFrames", "latent", "K5_Decode", "latent") in found
    assert ("LoadImage", "IMAGE", "K5_FitImage", "image") in found


@both("I2I")
def test_official_edit_shows_one_crop_to_encoder_and_model(foreign_workflow, name):
    found = wires(convert_workflow(foreign_workflow(name)).workflow)
    assert ("K5_FitImage", "image", "K5_TextEncode", "image") in found
    assert ("K5_FitImage", "image", "K5_EditImage", "image") in found
    assert ("K5_EditImage", "latent", "K5_Sampler", "latent") in found
    pictured = {link[2] for link in found if link[0] == "LoadImage"}
    assert pictured == {"K5_FitImage", "K5_ExpandPrompt"}


def test_template_keeps_what_feeds_its_size(foreign_workflow):
    workflow, _ = convert_workflow(foreign_workflow("video_kandinsky5_i2v"))
    node = of_type(workflow, "K5_ImageToVideo")
    assert sources(workflow, node, "width")["title"] == "Width"
    assert sources(workflow, node, "height")["widgets_values"] == [512, "fixed"]
    found = wires(workflow)
    assert ("LoadImage", "IMAGE", "ImageScale", "image") in found
    assert ("ImageScale", "IMAGE", "K5_ImageToVideo", "image") in found
    assert ("CreateVideo", "VIDEO", "SaveVideo", "video") in found
    assert ("K5_LoadModel", "MODEL", "K5_NormalizeFirstFrames", "model") in found
    assert "ModelSamplingSD3" not in {each for link in found for each in link}


def test_files_to_fetch_follow_the_loader(foreign_workflow):
    document = foreign_workflow("video_kandinsky5_t2v")
    models = of_type(convert_workflow(document).workflow, "K5_LoadVAE")["properties"]["models"]
    assert [each["name"] for each in models] == [HUNYUAN]
    nano = convert_workflow(document, nano=True).workflow
    assert all("models" not in node["properties"] for node in nano["nodes"])


@every_file
def test_made_nodes_cover_no_other_node(foreign_workflow, name):
    nodes = convert_workflow(foreign_workflow(name)).workflow["nodes"]
    boxes = {
        n["id"]: (*n["pos"], n["pos"][0] + n["size"][0], n["pos"][1] + n["size"][1]) for n in nodes
    }
    made = [node["id"] for node in nodes if node["type"] in OURS]
    for one in made:
        for other in set(boxes) - {one}:
            a, b = boxes[one], boxes[other]
            assert not (a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]), (one, other)


@every_file
def test_nano_leaves_no_file_and_no_large_size(foreign_workflow, name):
    workflow, _ = convert_workflow(foreign_workflow(name), nano=True)
    values = {node["type"]: node["widgets_values"] for node in workflow["nodes"]}
    model = "nano edit (bundled)" if "I2I" in name else "nano (bundled)"
    assert values["K5_LoadModel"] == [model, "default"]
    assert values["K5_LoadTextEncoders"][:2] == ["nano (bundled)", "(none)"]
    assert values["K5_LoadVAE"] == ["nano (bundled)"]
    seed, control, *settings = values["K5_Sampler"]
    assert [seed, control] == CASES[name]["K5_Sampler"][:2]
    assert settings == [0, 0, 0, 1]
    if "K5_EmptyLatent" in values:
        still = "2i" in name.lower()
        assert values["K5_EmptyLatent"] == [128, 128, 1 if still else 17, 1, 0]
    if "LoadImage" in values:
        assert values["LoadImage"] == ["example.png", "image"]
    if name == "video_kandinsky5_i2v":
        assert values["K5_ImageToVideo"] == [128, 128, 17, 1]
        entry = of_type(workflow, "K5_ImageToVideo")["inputs"]
        assert {e["name"]: e["link"] for e in entry}["width"] is None


@pytest.mark.parametrize("node_type", OURS)
def test_tables_agree_with_the_contract_and_the_shipped_workflows(node_type):
    spec, contract = OURS[node_type], CONTRACT[node_type]
    mine = [[each.name, each.type] for each in spec.inputs]
    assert mine == [[name, kind] for name, kind, _ in contract["inputs"][: len(mine)]]
    assert all(optional for *_, optional in contract["inputs"][len(mine) :])
    assert [kind for _, kind in spec.outputs] == contract["outputs"]
    shipped = [json.loads(p.read_text("utf-8")) for p in (ROOT / "workflows").glob("*.json")]
    for node in (node for workflow in shipped for node in workflow["nodes"]):
        if node["type"] == node_type:
            assert [each["name"] for each in node["outputs"]] == [name for name, _ in spec.outputs]


def test_a_saved_lora_loader_keeps_its_place_and_values(foreign_workflow):
    document = foreign_workflow("image_kandinsky5_t2i")
    inner = document["definitions"]["subgraphs"][0] if document.get("definitions") else document
    sampler = next(node for node in inner["nodes"] if node["type"] == "KSampler")
    entry = next(each for each in sampler["inputs"] if each["name"] == "model")
    link = next(each for each in inner["links"] if each["id"] == entry["link"])
    source = {key: link[key] for key in ("origin_id", "origin_slot")}
    lora = {"id": 900, "type": "LoraLoaderModelOnly", "pos": [0, 3000], "size": [300, 90]}
    lora |= {"mode": 0, "widgets_values": ["zoom.safetensors", 0.8], "properties": {}}
    lora["inputs"] = [{"name": "model", "type": "MODEL", "link": 901}]
    lora["outputs"] = [{"name": "MODEL", "type": "MODEL", "links": [entry["link"]]}]
    inner["nodes"].append(lora)
    inner["links"].append(
        {"id": 901, **source, "target_id": 900, "target_slot": 0, "type": "MODEL"}
    )
    link |= {"origin_id": 900, "origin_slot": 0}
    origin = next(node for node in inner["nodes"] if node["id"] == source["origin_id"])
    links = origin["outputs"][source["origin_slot"]]["links"]
    links[links.index(entry["link"])] = 901
    workflow, _ = convert_workflow(document)
    node = of_type(workflow, "K5_LoadLora")
    assert node["widgets_values"] == ["zoom.safetensors", 0.8]
    assert sources(workflow, node, "model")["type"] == "K5_LoadModel"
    assert sources(workflow, of_type(workflow, "K5_Sampler"), "model")["type"] == "K5_LoadLora"
    wires(workflow)


@both("T2V")
def test_a_link_to_something_gone_is_named(foreign_workflow, name):
    document = foreign_workflow(name)
    loader = of_type(document, "Kandinsky5LoadDiT")["id"]
    probe = {"id": 99, "type": "ShowConfig", "pos": [0, 2000], "size": [200, 60], "mode": 0}
    probe["inputs"] = [{"name": "conf", "type": "CONFIG", "link": 500}]
    document["nodes"].append(probe | {"outputs": [], "properties": {}})
    document["links"].append([500, loader, 1, 99, 0, "CONFIG"])
    workflow, report = convert_workflow(document)
    assert of_type(workflow, "ShowConfig")["inputs"][0]["link"] is None
    (line,) = (line for line in report.lost if "ShowConfig" in line)
    assert f"'conf' came from Kandinsky5LoadDiT {loader}" in line


def test_values_of_a_subgraph_node_win_over_those_inside(foreign_workflow):
    document = foreign_workflow("image_kandinsky5_t2i")
    instance = next(node for node in document["nodes"] if node["id"] == 12)
    # text, width, height, seed, control, unet, vae, clip 1, clip 2: its proxyWidgets
    instance["widgets_values"] = [
        "a boat",
        1280,
        768,
        7,
        "fixed",
        "a_kandinsky5_t2i",
        "v",
        "q",
        "c",
    ]
    workflow, _ = convert_workflow(document)
    assert of_type(workflow, "K5_EmptyLatent")["widgets_values"][:2] == [1280, 768]
    assert of_type(workflow, "K5_Sampler")["widgets_values"][:2] == [7, "fixed"]
    assert of_type(workflow, "K5_LoadModel")["widgets_values"][0] == "a_kandinsky5_t2i"
    positive = sources(workflow, of_type(workflow, "K5_Sampler"), "positive")
    assert positive["widgets_values"][0] == "a boat"


@both("T2I")
def test_a_subgraph_without_kandinsky_nodes_stays_one(foreign_workflow, name):
    document = foreign_workflow(name)
    inside = {"id": 1, "type": "ImageInvert", "pos": [0, 0], "size": [200, 60], "mode": 0}
    other = {"id": "other", "name": "Invert", "inputs": [], "outputs": [], "links": []}
    document["definitions"] = {"subgraphs": [other | {"nodes": [inside]}]}
    document["nodes"].append({"id": 99, "type": "other", "pos": [0, 3000], "size": [200, 60]})
    workflow, report = convert_workflow(document)
    assert workflow["definitions"] == document["definitions"]
    assert "other 99 stays as it is." in report.kept
    assert "1 subgraph(s) stay as they are." in report.kept
