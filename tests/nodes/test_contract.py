"""Saved workflows rely on node ids, input ids in order, types and outputs: they only ever grow."""

from __future__ import annotations

import json
import re

import pytest

from tooling.environment import ROOT

CONTRACT = ROOT / "tests" / "nodes" / "contract.json"
WORKFLOWS = sorted((ROOT / "workflows").glob("*.json"))
NODE_ID = re.compile(r"\bK5_\w+")


@pytest.fixture(scope="module")
def contract():
    """Node id -> {"inputs": [[id, type, optional], ...], "outputs": [type, ...]}."""
    return json.loads(CONTRACT.read_text(encoding="utf-8"))


def describe(node):
    schema = node.define_schema()
    return {
        "inputs": [[each.id, each.io_type, each.optional] for each in schema.inputs],
        "outputs": [each.io_type for each in schema.outputs],
    }


def test_every_node_is_in_the_contract_as_it_is(host, contract):
    assert {node_id: describe(node) for node_id, node in host.pack.items()} == contract


def test_inputs_and_outputs_are_explained(host):
    for node_id, node in host.pack.items():
        schema = node.define_schema()
        assert node_id.startswith("K5_")
        assert schema.category.startswith("Kandinsky 5")
        assert schema.description.endswith(".")
        for each in schema.inputs:
            assert each.tooltip and each.tooltip.endswith("."), f"{node_id}.{each.id}"


def test_every_node_has_a_help_page_that_names_its_inputs(host):
    for node_id, node in host.pack.items():
        page = (ROOT / "web" / "docs" / node_id / "en.md").read_text(encoding="utf-8")
        schema = node.define_schema()
        assert page.startswith(f"# {schema.display_name}\n")
        widgets = [each.id for each in schema.inputs if hasattr(each, "default")]
        missing = [name for name in widgets if name not in page]
        assert not missing or (node_id == "K5_ImageToVideo" and set(missing) <= {"seed"}), node_id


def test_web_files_name_only_known_nodes(contract):
    for path in (ROOT / "web").rglob("*"):
        if path.suffix in (".js", ".md", ".json"):
            unknown = set(NODE_ID.findall(path.read_text(encoding="utf-8"))) - set(contract)
            assert not unknown, f"{path.name} names {unknown}"


def widget_values(node, schema):
    """Pair the saved values with the inputs that have a widget."""
    values = list(node["widgets_values"])
    pairs = {}
    for each in schema.inputs:
        if not values and each.optional:
            continue  # saved before the input was there: the page gives it its default
        if hasattr(each, "default"):
            pairs[each.id] = values.pop(0)
            # the page gives this to whatever is called seed
            if getattr(each, "control_after_generate", None) or each.id == "seed":
                values.pop(0)
    assert not values, node["type"]
    return pairs


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_workflow_fits_the_nodes(host, path):
    workflow = json.loads(path.read_text(encoding="utf-8"))
    nodes = {node["id"]: node for node in workflow["nodes"]}
    for node in nodes.values():
        if node["type"] in host.pack:
            schema = host.pack[node["type"]].define_schema()
            inputs = {each.id: each for each in schema.inputs}
            for name, value in widget_values(node, schema).items():
                options = getattr(inputs[name], "options", None)
                if options is not None and not str(value).endswith(".safetensors"):
                    assert value in options, f"{node['type']}.{name}"
            linked = {each["name"] for each in node["inputs"] if each["link"] is not None}
            required = {
                k for k, v in inputs.items() if not v.optional and not hasattr(v, "default")
            }
            assert required <= linked
        elif node["type"] != "MarkdownNote":
            classes = host.native.NODE_CLASS_MAPPINGS
            assert node["type"] in classes or node["type"] in ("CreateVideo", "SaveVideo")
    for link_id, source, slot, target, target_slot, kind in workflow["links"]:
        assert link_id in nodes[source]["outputs"][slot]["links"]
        assert nodes[source]["outputs"][slot]["type"] == kind
        assert nodes[target]["inputs"][target_slot]["link"] == link_id


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_files_to_fetch_are_named_with_their_place(path):
    workflow = json.loads(path.read_text(encoding="utf-8"))
    for node in workflow["nodes"]:
        files = {v for v in node.get("widgets_values", ()) if str(v).endswith(".safetensors")}
        files -= {"nano_lora.safetensors"}  # trained here, in minutes
        models = node["properties"].get("models", [])
        assert {model["name"] for model in models} == files
        for model in models:
            assert model["url"].startswith("https://huggingface.co/")
            assert model["url"].endswith(model["name"])
            assert model["directory"] in ("diffusion_models", "text_encoders", "vae")


@pytest.mark.parametrize(
    "path", sorted((ROOT / "locales").glob("*/nodeDefs.json")), ids=lambda path: path.parent.name
)
def test_translation_covers_every_node_and_names_real_inputs(contract, path):
    translated = json.loads(path.read_text(encoding="utf-8"))
    assert set(translated) == set(contract)
    for node_id, words in translated.items():
        assert words["display_name"] and words["description"]
        assert set(words["inputs"]) == {name for name, *_ in contract[node_id]["inputs"]}, node_id
