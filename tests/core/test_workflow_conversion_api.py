"""The workflow converter on the API format, what it refuses, and its command."""

from __future__ import annotations

import copy
import json
import re

import pytest

from kandinsky_core.__main__ import main
from kandinsky_core.errors import WorkflowError
from kandinsky_core.workflows import convert_workflow
from tooling.environment import ROOT

CLIP_L = "clip_l.safetensors"
HUNYUAN = "hunyuan_video_vae_bf16.safetensors"


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


def test_pictures_that_cannot_be_connected_are_named():
    workflow, report = convert_workflow(
        {
            "1": api("Kandinsky5LoadDiT", dit="kandinsky5lite_i2v_5s.safetensors"),
            "2": api("Kandinsky5LoadTextEmbedders", qwen="qwen", clip="clip"),
            "3": api("LoadImage", image="boat.png"),
            "4": api("SomebodysEncoder", image=["3", 0]),
            "5": api("Kandinsky5TextEncode", model=["2", 0], prompt="a boat", image=["3", 0]),
            "6": api(
                "Kandinsky5Generate",
                model=["1", 0],
                positive_emb=["5", 0],
                negative_emb=["5", 0],
                image_latent=["4", 0],
                length=33,
            ),
        }
    )
    assert workflow["5"] == api("K5_TextEncode", clip=["2", 0], text="a boat", task="i2v")
    latent = workflow["6"]["inputs"]["latent"]
    assert workflow[latent[0]]["class_type"] == "K5_EmptyLatent"
    assert workflow[latent[0]]["inputs"]["length"] == 33
    assert report.lost == [
        "Kandinsky5TextEncode 5: its image is not connected, K5_TextEncode reads one for i2i only, "
        "not i2v.",
        "Kandinsky5Generate 6: the image latent of SomebodysEncoder 4 cannot be connected.",
    ]


def test_foreign_nodes_behind_official_ones_get_what_there_is():
    workflow, report = convert_workflow(
        {
            "1": api("Kandinsky5LoadDiT", dit="kandinsky5lite_i2i.safetensors"),
            "2": api("Kandinsky5TextEncode", prompt="a boat"),
            "3": api("LoadImage", image="boat.png"),
            "4": api("Kandinsky5VAEImageEncode", image=["3", 0], config=["1", 1]),
            "5": api("ShowLatent", latent=["4", 0]),
            "6": api("ShowPooled", pooled=["2", 1]),
        }
    )
    assert workflow["4"]["class_type"] == "K5_FitImage"
    assert workflow["5"] == api("ShowLatent")  # K5_FitImage gives a picture, not a latent
    assert workflow["6"] == api("ShowPooled", pooled=["2", 0])
    (line,) = report.lost
    assert line.startswith("ShowLatent 5: its input 'latent' came from Kandinsky5VAEImageEncode 4")


def test_native_nodes_after_sampling_tell_what_they_had_set():
    image_to_video = {
        "6": api(
            "Kandinsky5ImageToVideo",
            positive=["4", 0],
            negative=["5", 0],
            vae=["3", 0],
            start_image=["12", 0],
            **SIZE,
        ),
        "9": api(
            "KSampler",
            model=["8", 0],
            positive=["6", 0],
            negative=["6", 1],
            latent_image=["6", 2],
            **SAMPLER,
            **EULER,
        ),
        "12": api("LoadImage", image="boat.png"),
        "13": api("ReplaceVideoLatentFrames", destination=["9", 0], source=["6", 3], index=2),
        "14": api(
            "NormalizeVideoLatentStart",
            latent=["13", 0],
            start_frame_count=3,
            reference_frame_count=5,
        ),
        "10": api("VAEDecode", samples=["14", 0], vae=["3", 0]),
        "15": api("SomebodysLatent"),
        "16": api("ReplaceVideoLatentFrames", destination=["9", 0], source=["15", 0], index=0),
    }
    workflow, report = convert_workflow({**API, **image_to_video})
    assert workflow["14"] == api("K5_NormalizeFirstFrames", model=["1", 0], latent=["9", 0])
    assert workflow["16"] == image_to_video["16"]
    assert "13" not in workflow
    lost = "\n".join(report.lost)
    assert "ReplaceVideoLatentFrames 13: index 2 has no counterpart" in lost
    assert "NormalizeVideoLatentStart 14: frame counts (3, 5) have no counterpart" in lost


def test_what_the_file_does_not_say_is_read_from_the_type_of_the_text_encoders():
    images = api("DualCLIPLoader", clip_name1="q", clip_name2="c", type="kandinsky5_image")
    renamed = api("UNETLoader", unet_name="my_kandinsky5_mix.safetensors")
    workflow, _ = convert_workflow({**API, "1": renamed, "2": images})
    assert workflow["4"]["inputs"]["task"] == workflow["2"]["inputs"]["task"] == "t2i"
    alone, _ = convert_workflow({"2": images})
    assert alone["2"]["inputs"]["task"] == "t2i"
    of_videos = {"2": images | {"inputs": images["inputs"] | {"type": "kandinsky5"}}}
    assert convert_workflow(of_videos).workflow["2"]["inputs"]["task"] == "t2v"


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


def test_broken_links_of_the_api_format_are_refused():
    dangling = copy.deepcopy(API)
    dangling["9"]["inputs"]["model"] = ["77", 0]
    assert "'model' comes from node 77" in refused(dangling)
    circle = copy.deepcopy(API)
    circle["7"]["inputs"]["model"] = ["8", 0]
    assert "run in a circle" in refused(circle)


@pytest.mark.parametrize(
    ("name", "loader", "first_link", "first_target"),
    [("kandinsky5_lite_T2V", 74, 139, 68), ("small_T2V", 29, 301, 21)],
)
def test_broken_links_are_refused(foreign_workflow, name, loader, first_link, first_target):
    document = foreign_workflow(name)
    no_node = {**document, "nodes": [n for n in document["nodes"] if n["id"] != loader]}
    assert re.search(rf"ends at output \d of node {loader}", refused(no_node))
    wrong_slot = copy.deepcopy(document)
    wrong_slot["links"][0][4] = 9
    words = f"Link {first_link} (MODEL) ends at input 9 of node {first_target}"
    assert words in refused(wrong_slot)
    no_link = {**document, "links": document["links"][1:]}
    assert f"names link {first_link}" in refused(no_link)
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
