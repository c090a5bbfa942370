"""The pack in a real ComfyUI: it loads silently and lists its nodes."""

from __future__ import annotations

import re

from tooling.comfyui import PACK
from tooling.environment import ROOT

PREFIX = "K5_"


def test_pack_is_imported_without_a_word_of_trouble(comfy_server, pack_log_lines):
    imported = [line for line in pack_log_lines if re.search(r"\d seconds", line)]
    assert len(imported) == 1, comfy_server.log()
    assert "IMPORT FAILED" not in imported[0]
    trouble = re.compile(r"warning|error|traceback|failed|deprecated|skip", re.IGNORECASE)
    assert not [line for line in pack_log_lines if trouble.search(line)]


def test_every_node_comes_from_the_pack_and_is_described(comfy):
    nodes = {name: info for name, info in comfy.object_info().items() if name.startswith(PREFIX)}
    assert nodes, "object_info lists no node of the pack"
    for name, info in nodes.items():
        assert info["python_module"] == f"custom_nodes.{PACK}", name
        assert info["category"].startswith("Kandinsky 5"), name
        assert info["description"], f"{name} has no description"
        assert info["display_name"] != name
        for group in ("required", "optional"):  # hidden inputs are the host's own
            for input_id, spec in info["input"].get(group, {}).items():
                options = spec[1] if len(spec) > 1 else {}
                assert options.get("tooltip"), f"{name}.{input_id} has no tooltip"


def test_the_list_of_nodes_is_complete(comfy):
    page = (ROOT / "docs" / "nodes.md").read_text(encoding="utf-8")
    listed = set(re.findall(r"\| `(K5_\w+)` \|", page))
    assert listed == {name for name in comfy.object_info() if name.startswith(PREFIX)}


def test_every_workflow_is_offered_as_a_template(comfy):
    shipped = {path.stem for path in (ROOT / "workflows").glob("*.json")}
    assert shipped and set(comfy.get("/workflow_templates")[PACK]) == shipped


def test_help_page_exists_for_nodes_that_ship_one(comfy_server, comfy):
    for page in sorted((comfy_server.base / "custom_nodes" / PACK / "web").glob("docs/*/en.md")):
        body = comfy.get_bytes(f"/extensions/{PACK}/docs/{page.parent.name}/en.md")
        assert body == page.read_bytes()
        assert comfy.object_info(page.parent.name), page.parent.name
