"""Files whose words ask for more than their tensors: each is refused before anything is built.

Nothing here is timed: what is not refused runs for minutes, or until memory ends.
"""

from __future__ import annotations

import json

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from kandinsky_core.checkpoint import identify, load_transformer, load_vae
from kandinsky_core.errors import CheckpointError, WorkflowError
from kandinsky_core.nano import nano_path
from kandinsky_core.text import load_nano_text_encoder
from kandinsky_core.text.qwen_clip_load import load_qwen_clip
from kandinsky_core.workflows import convert_workflow

MANY = 10**7
KEY = "kandinsky_core"


@pytest.fixture
def save_like(tmp_path):
    """Save tensors of one number each under a bundled file's names, its description changed."""

    def save(part, change, more=()):
        with safe_open(nano_path(part), "pt") as file:
            names, described = list(file.keys()), json.loads(file.metadata()[KEY])
            shapes = {name: file.get_slice(name).get_shape() for name in names}
        change(described)
        path = tmp_path / "hostile.safetensors"
        tensors = {name: torch.zeros(shape, dtype=torch.int8) for name, shape in shapes.items()}
        tensors |= {name: torch.zeros(1) for name in more}
        save_file(tensors, path, metadata={KEY: json.dumps(described)})
        return path

    return save


def test_residual_blocks_of_an_autoencoder(save_like):
    path = save_like("vae", lambda described: described["config"].update(layers_per_block=MANY))
    with pytest.raises(CheckpointError, match=r"\d residual blocks in the encoder where \d{8}"):
        load_vae(path)


@pytest.mark.parametrize("stage", [9999, "9" * 5000])
def test_stages_of_an_autoencoder(save_like, stage):
    def change(described):
        first, *_, last = described["config"]["block_out_channels"]
        described["config"].update(block_out_channels=[first, *[8] * 9_998, last])

    name = f"decoder.up_blocks.{stage}.resnets.0.conv1.conv.weight"
    with pytest.raises(CheckpointError, match=r"\d resolutions where 10000 are expected"):
        load_vae(save_like("vae", change, [name]))


@pytest.mark.parametrize("list_name", ["visual_transformer_blocks", "text_transformer_blocks"])
def test_blocks_of_a_transformer(save_like, list_name):
    def change(described):
        described.pop("config")

    path = save_like("transformer", change, [f"{list_name}.{MANY}.self_attention.to_query.weight"])
    with pytest.raises(CheckpointError, match=f"has {list_name} {MANY} and none of number"):
        load_transformer(path, device="meta")
    digits = save_like("transformer", lambda _: None, [f"{list_name}.{'9' * 5000}.x"])
    assert identify(digits).variant == "nano"
    with pytest.raises(CheckpointError, match="1 unexpected"):
        load_transformer(digits, device="meta")


def test_layers_of_a_text_encoder(save_like):
    path = save_like("text_encoder", lambda described: described["config"].update(num_layers=MANY))
    with pytest.raises(CheckpointError, match=f"{MANY} layers in"):
        load_nano_text_encoder(path)


@pytest.mark.parametrize(
    ("part", "name"), [("text_config", "num_hidden_layers"), ("vision_config", "depth")]
)
def test_layers_that_a_config_json_asks_for(tmp_path, part, name):
    pytest.importorskip("transformers")
    save_file({"visual.x": torch.zeros(1)}, tmp_path / "model.safetensors")
    config = {
        "model_type": "qwen2_5_vl",
        "text_config": {"num_hidden_layers": 1},
        part: {name: MANY},
    }
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match=f"says {name} {MANY} and there are 1 tensors"):
        load_qwen_clip(tmp_path, tmp_path, qwen_tokenizer=tmp_path, clip_tokenizer=tmp_path)


def laughs(levels, innermost):
    """Return a workflow whose subgraphs stand twice in the next: 2 ** levels nodes in a few
    kilobytes."""

    def node(number, kind):
        return {"id": number, "type": kind, "pos": [0, 0], "inputs": [], "outputs": []}

    def part(inside):
        nodes = [node(number, inside) for number in (1, 2)]
        return {"nodes": nodes, "links": [], "inputs": [], "outputs": [], "name": "laugh"}

    kinds = [innermost, *map(str, range(levels))]
    subgraphs = [{**part(kinds[i]), "id": kinds[i + 1]} for i in range(levels)]
    nodes = [node(1, kinds[-1])]
    return {"nodes": nodes, "links": [], "definitions": {"subgraphs": subgraphs}}


@pytest.mark.parametrize("levels", [11, 13, 900, 20_000])
def test_subgraphs_that_multiply(levels):
    with pytest.raises(WorkflowError, match="more than 2000 nodes, those inside its subgraphs"):
        convert_workflow(laughs(levels, "Kandinsky5LoadDiT"))


def test_subgraphs_that_multiply_what_is_not_ours_are_visited_once():
    with pytest.raises(WorkflowError, match="no Kandinsky 5 node"):
        convert_workflow(laughs(5_000, "Note"))
    # few enough are laid out as ever
    assert len(convert_workflow(laughs(3, "Kandinsky5LoadDiT")).workflow["nodes"]) == 8


def test_links_that_multiply():
    document = laughs(9, "Kandinsky5LoadDiT")
    inner = document["definitions"]["subgraphs"][0]
    inner["inputs"] = [{"name": f"{i}", "type": "*"} for i in range(100)]
    with pytest.raises(WorkflowError, match="more than 20000 links and groups"):
        convert_workflow(document)
