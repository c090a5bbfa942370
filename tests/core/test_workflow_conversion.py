"""The workflow converter on the official pack's workflows, ComfyUI's templates and small cases.

Expected values were read from those files by hand.
"""

from __future__ import annotations

import copy
import json

import pytest

from kandinsky_core.__main__ import main
from kandinsky_core.errors import WorkflowError
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
CASES = OFFICIAL | TEMPLATES

every_file = pytest.mark.parametrize("name", CASES)


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
    """The node that feeds an input."""
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
        if side == "positive" and name in OFFICIAL:
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
        ("video_kandinsky5_t2v", ["euler_ancestral with scheduler beta has no counterpart"]),
    ],
)
def test_what_has_no_counterpart_is_named(foreign_workflow, name, words):
    lost = "\n".join(convert_workflow(foreign_workflow(name)).report.lost)
    assert [each for each in words if each not in lost] == []


def test_official_text_to_video_is_wired_like_our_own_workflow(foreign_workflow):
    workflow, _ = convert_workflow(foreign_workflow("kandinsky5_lite_T2V"))
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


def test_official_image_to_video_takes_size_and_picture_from_one_crop(foreign_workflow):
    found = wires(convert_workflow(foreign_workflow("kandinsky5_lite_I2V")).workflow)
    fitted = {link for link in found if link[0] == "K5_FitImage"}
    assert fitted == {
        ("K5_FitImage", each, "K5_ImageToVideo", each) for each in ("image", "width", "height")
    }
    assert ("K5_Sampler", "latent", "K5_NormalizeFirstFrames", "latent") in found
    assert ("K5_NormalizeFirstFrames", "latent", "K5_Decode", "latent") in found
    assert ("LoadImage", "IMAGE", "K5_FitImage", "image") in found


def test_official_edit_shows_one_crop_to_encoder_and_model(foreign_workflow):
    found = wires(convert_workflow(foreign_workflow("kandinsky5_lite_I2I")).workflow)
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


def api(node_type, **inputs):
    return {"class_type": node_type, "inputs": inputs}


SAMPLER = {"seed": 11, "steps": 20, "cfg": 1.0, "denoise": 0.75}
EULER = {"sampler_name": "euler", "scheduler": "simple"}
LORA = {"lora_name": "zoom.safetensors", "strength_model": 0.8}
SIZE = {"width": 512, "height": 768, "length": 61, "batch_size": 2}
FILE = "kandinsky5lite_t2v_nocfg_5s.safetensors"
API = {
    "1": api("UNETLoader", unet_name=FILE, weight_dtype="fp8_e4m3fn_fast"),
    "2": api(
        "DualCLIPLoader",
        clip_name1=CLIP_L,
        clip_name2="qwen.safetensors",
        type="kandinsky5",
        device="cpu",
    ),
    "3": api("VAELoader", vae_name=HUNYUAN),
    "4": {
        **api("CLIPTextEncodeKandinsky5", clip=["2", 0], clip_l="a fox", qwen25_7b="a fox runs"),
        "_meta": {"title": "Prompt"},
    },
    "5": api("CLIPTextEncode", clip=["2", 0], text="static"),
    "6": api("EmptyHunyuanLatentVideo", **SIZE),
    "7": api("LoraLoaderModelOnly", model=["1", 0], **LORA),
    "8": api("ModelSamplingSD3", model=["7", 0], shift=7.5),
    "9": api(
        "KSampler",
        model=["8", 0],
        positive=["4", 0],
        negative=["5", 0],
        latent_image=["6", 0],
        **SAMPLER,
        **EULER,
    ),
    "10": api("VAEDecodeTiled", samples=["9", 0], vae=["3", 0], tile_size=256, overlap=64),
    "11": api("SomebodysUpscaler", image=["10", 0], factor=[2, 3, 4]),
}


def test_api_format_stays_api_format():
    workflow, report = convert_workflow(API)
    model, clip = ["1", 0], ["2", 0]
    expected = {
        "1": api("K5_LoadModel", model_name=FILE, weight_dtype="fp8_e4m3fn"),
        "2": api("K5_LoadTextEncoders", qwen_name="qwen.safetensors", clip_name=CLIP_L, task="t2v"),
        "3": api("K5_LoadVAE", vae_name=HUNYUAN),
        "4": api("K5_TextEncode", clip=clip, text="a fox runs", task="t2v"),
        "5": api("K5_TextEncode", clip=clip, text="static", task="t2v"),
        "6": api("K5_EmptyLatent", **SIZE, seconds=0, model=model),
        "7": api("K5_LoadLora", model=model, lora_name="zoom.safetensors", strength=0.8),
        "9": api(
            "K5_Sampler",
            model=["7", 0],
            positive=["4", 0],
            negative=["5", 0],
            latent=["6", 0],
            shift=7.5,
            **SAMPLER,
        ),
        "10": api("K5_Decode", vae=["3", 0], latent=["9", 0], memory_budget_gb=0),
        "11": API["11"],
    }
    assert workflow["4"].pop("_meta") == {"title": "Prompt"}
    assert workflow == expected
    lost = "\n".join(report.lost)
    for words in ("fp8_e4m3fn_fast", "device cpu", "clip_l had a text", "tile sizes"):
        assert words in lost
    assert len(report.lost) == 4


def test_a_lora_of_model_and_clip_passes_the_clip_on():
    lora = api("LoraLoader", model=["1", 0], clip=["2", 0], **LORA, strength_clip=1.0)
    prompt = api("CLIPTextEncode", clip=["7", 1], text="static")
    workflow, report = convert_workflow({**API, "7": lora, "5": prompt})
    given = {"model": ["1", 0], "lora_name": "zoom.safetensors", "strength": 0.8}
    assert workflow["7"] == api("K5_LoadLora", **given)
    assert workflow["5"]["inputs"]["clip"] == ["2", 0]
    assert workflow["9"]["inputs"]["model"] == ["7", 0]
    assert "LoraLoader 7 became K5_LoadLora 7." in report.mapped


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


def test_official_nodes_in_api_format_become_ours():
    file = "kandinsky5lite_t2v_sft_10s.safetensors"
    text = {"model": ["2", 0], "gen_type": ["1", 2]}
    official = {
        "1": api("Kandinsky5LoadDiT", dit=file),
        "2": api("Kandinsky5LoadTextEmbedders", qwen="qwen", clip="clip", qwen_quantized=False),
        "3": api("Kandinsky5LoadVAE", vae="hunyuan_vae"),
        "4": api("expand_prompt", model=["2", 0], gen_type=["1", 2], prompt="a fox"),
        "5": api("Kandinsky5TextEncode", **text, prompt="", extended_text=["4", 0]),
        "6": api("Kandinsky5TextEncode", **text, prompt="static"),
        "7": api(
            "Kandinsky5Generate",
            model=["1", 0],
            config=["1", 1],
            steps=16,
            width=768,
            height=512,
            length=241,
            cfg=1.0,
            scheduler_scale=10.0,
            positive_emb=["5", 0],
            positive_clip=["5", 1],
            negative_emb=["6", 0],
            negative_clip=["6", 1],
            gen_type=["1", 2],
            seed=3,
        ),
        "8": api("Kandinsky5VAEDecode", model=["3", 0], latent=["7", 0]),
        "9": api("SaveImage", images=["8", 0], filename_prefix="fox"),
    }
    workflow, report = convert_workflow(official)
    size = {"width": 768, "height": 512, "length": 241, "batch_size": 1, "seconds": 0}
    expansion = {"language": "English", "seed": 0, "max_tokens": 256, "temperature": 0.7}
    assert workflow == {
        "1": api("K5_LoadModel", model_name=file, weight_dtype="default"),
        "2": api("K5_LoadTextEncoders", qwen_name="qwen", clip_name="clip", task="t2v"),
        "3": api("K5_LoadVAE", vae_name="hunyuan_vae"),
        "4": api("K5_ExpandPrompt", clip=["2", 0], prompt="a fox", task="t2v", **expansion),
        "5": api("K5_TextEncode", clip=["2", 0], text=["4", 0], task="t2v"),
        "6": api("K5_TextEncode", clip=["2", 0], text="static", task="t2v"),
        "7": api(
            "K5_Sampler",
            model=["1", 0],
            positive=["5", 0],
            negative=["6", 0],
            latent=["10", 0],
            seed=3,
            cfg=1.0,
            steps=16,
            shift=10.0,
            denoise=1,
        ),
        "10": api("K5_EmptyLatent", **size, model=["1", 0]),
        "8": api("K5_Decode", vae=["3", 0], latent=["7", 0], memory_budget_gb=0),
        "9": official["9"],
    }
    assert report.lost == []


def test_another_model_in_the_same_workflow_is_left_alone():
    other = {
        "20": api("UNETLoader", unet_name="wan.safetensors", weight_dtype="default"),
        "21": api("CLIPLoader", clip_name="umt5.safetensors", type="wan"),
        "22": api("CLIPTextEncode", clip=["21", 0], text="a fox"),
        "23": api("VAELoader", vae_name="wan_vae.safetensors"),
        "24": api("VAEEncode", pixels=["10", 0], vae=["23", 0]),
        "28": api("LoraLoaderModelOnly", model=["20", 0], **LORA),
        "25": api(
            "KSampler",
            model=["28", 0],
            positive=["22", 0],
            negative=["22", 0],
            latent_image=["24", 0],
            **SAMPLER,
            **EULER,
        ),
        "26": api("NormalizeVideoLatentStart", latent=["25", 0], start_frame_count=4),
        "27": api("VAEDecode", samples=["26", 0], vae=["23", 0]),
    }
    workflow, _ = convert_workflow({**API, **other})
    assert {key: workflow[key] for key in other} == other


def test_a_latent_that_another_model_samples_too_stays_native():
    other = {
        "20": api("UNETLoader", unet_name="wan.safetensors"),
        "25": api("KSampler", model=["20", 0], latent_image=["6", 0], seed=1),
    }
    workflow, _ = convert_workflow({**API, **other})
    assert workflow["6"] == API["6"]
    assert workflow["9"]["inputs"]["latent"] == ["6", 0]


def test_a_sampler_we_do_not_replace_keeps_its_shift():
    workflow = copy.deepcopy(API)
    workflow["9"]["class_type"] = "KSamplerAdvanced"
    result, report = convert_workflow(workflow)
    assert result["9"]["class_type"] == "KSamplerAdvanced"
    assert result["8"] == API["8"]
    assert result["6"]["class_type"] == "K5_EmptyLatent"
    assert result["10"]["class_type"] == "K5_Decode"
    assert "KSamplerAdvanced 9 stays as it is." in report.kept


def test_a_link_to_something_gone_is_named(foreign_workflow):
    document = foreign_workflow("kandinsky5_lite_T2V")
    probe = {"id": 99, "type": "ShowConfig", "pos": [0, 2000], "size": [200, 60], "mode": 0}
    probe["inputs"] = [{"name": "conf", "type": "CONFIG", "link": 500}]
    document["nodes"].append(probe | {"outputs": [], "properties": {}})
    document["links"].append([500, 74, 1, 99, 0, "CONFIG"])
    workflow, report = convert_workflow(document)
    assert of_type(workflow, "ShowConfig")["inputs"][0]["link"] is None
    (line,) = (line for line in report.lost if "ShowConfig" in line)
    assert "'conf' came from Kandinsky5LoadDiT 74" in line


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


def test_a_subgraph_without_kandinsky_nodes_stays_one(foreign_workflow):
    document = foreign_workflow("kandinsky5_lite_T2I")
    inside = {"id": 1, "type": "ImageInvert", "pos": [0, 0], "size": [200, 60], "mode": 0}
    other = {"id": "other", "name": "Invert", "inputs": [], "outputs": [], "links": []}
    document["definitions"] = {"subgraphs": [other | {"nodes": [inside]}]}
    document["nodes"].append({"id": 99, "type": "other", "pos": [0, 3000], "size": [200, 60]})
    workflow, report = convert_workflow(document)
    assert workflow["definitions"] == document["definitions"]
    assert "other 99 stays as it is." in report.kept
    assert "1 subgraph(s) stay as they are." in report.kept


def refused(document):
    with pytest.raises(WorkflowError) as error:
        convert_workflow(document)
    sentence = str(error.value)
    assert "\n" not in sentence and sentence.endswith(".")
    return sentence


def test_what_is_no_workflow_is_refused():
    for document in ([], "text", 3, None, {}, {"a": 1}, {"nodes": 1, "links": []}):
        assert "expected a ComfyUI workflow" in refused(document)
    assert "expected its inputs as an object" in refused({"1": {"class_type": "KSampler"}})
    assert "whole number as id" in refused({"nodes": [{"type": "KSampler"}], "links": []})
    assert "Node 1 has no type" in refused({"nodes": [{"id": 1}], "links": []})


def test_what_holds_nothing_to_convert_is_refused():
    foreign = {"1": {"class_type": "UNETLoader", "inputs": {"unet_name": "wan.safetensors"}}}
    assert "has no Kandinsky 5 node" in refused(foreign)
    own = json.loads((ROOT / "workflows" / "text_to_video.json").read_text(encoding="utf-8"))
    assert "there is nothing to convert" in refused(own)


def test_broken_links_are_refused(foreign_workflow):
    dangling = copy.deepcopy(API)
    dangling["9"]["inputs"]["model"] = ["77", 0]
    assert "'model' comes from node 77" in refused(dangling)
    circle = copy.deepcopy(API)
    circle["7"]["inputs"]["model"] = ["8", 0]
    assert "run in a circle" in refused(circle)

    document = foreign_workflow("kandinsky5_lite_T2V")
    no_node = {**document, "nodes": [n for n in document["nodes"] if n["id"] != 74]}
    assert "ends at output 0 of node 74" in refused(no_node)
    wrong_slot = copy.deepcopy(document)
    wrong_slot["links"][0][4] = 9
    assert "Link 139 (MODEL) ends at input 9 of node 68" in refused(wrong_slot)
    no_link = {**document, "links": document["links"][1:]}
    assert "names link 139" in refused(no_link)
    no_shape = {**document, "links": [[1, 2]]}
    assert "expected [id, node, output, node, input, type]" in refused(no_shape)


def test_a_subgraph_in_itself_is_refused(foreign_workflow):
    document = foreign_workflow("video_kandinsky5_t2v")
    (definition,) = document["definitions"]["subgraphs"]
    definition["nodes"].append({"id": 50, "type": definition["id"], "pos": [0, 0]})
    assert "'Kandinsky5 Text to Video' contains itself" in refused(document)
    del definition["links"]
    assert "'Kandinsky5 Text to Video' has no list of links" in refused(document)


def test_command_writes_the_result_and_tells(tmp_path, capsys):
    source, target = tmp_path / "in.json", tmp_path / "out.json"
    source.write_text(json.dumps(API), encoding="utf-8")
    assert main(["convert-workflow", str(source), str(target), "--nano"]) == 0
    written = json.loads(target.read_text(encoding="utf-8"))
    assert written["1"]["inputs"] == {"model_name": "nano (bundled)", "weight_dtype": "default"}
    assert written["6"]["inputs"]["length"] == 17
    assert set(written["1"]) == {"class_type", "inputs"}
    told = capsys.readouterr().out
    assert "UNETLoader 1 became K5_LoadModel 1." in told
    assert "LoraLoaderModelOnly 7 became K5_LoadLora 7." in told
    assert written["7"]["inputs"]["strength"] == 0  # no LoRA is for nano
    assert "Could not be mapped (4):" in told


@pytest.mark.parametrize(
    ("text", "target", "words"),
    [
        (None, "out.json", "cannot be read"),
        ("{", "out.json", "is not JSON"),
        ("[]", "out.json", "expected a ComfyUI workflow"),
        (json.dumps(API), "nowhere/out.json", "does not exist"),
    ],
)
def test_command_refuses_in_one_sentence(tmp_path, capsys, text, target, words):
    source = tmp_path / "in.json"
    if text is not None:
        source.write_text(text, encoding="utf-8")
    assert main(["convert-workflow", str(source), str(tmp_path / target)]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ") and words in line
    assert not (tmp_path / target).exists()
