"""The pack in ComfyUI's web page."""

from __future__ import annotations


def test_page_knows_every_node_of_the_pack(fresh_page, comfy):
    on_server = {name for name in comfy.object_info() if name.startswith("K5_")}
    page = fresh_page
    page.wait_for_function("() => Object.keys(LiteGraph.registered_node_types).length > 100")
    in_page = page.evaluate("() => Object.keys(LiteGraph.registered_node_types)")
    assert on_server
    assert on_server <= set(in_page)
    assert page.console.from_the_pack() == []
