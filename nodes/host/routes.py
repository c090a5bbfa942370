"""What the pack answers over HTTP: the page's menu entry for converting a workflow."""

from __future__ import annotations

import sys
from typing import Any

from ...kandinsky_core.workflows import convert_workflow

CONVERT = "/kandinsky5/convert_workflow"


def add_routes() -> None:
    """Add the pack's routes to the ComfyUI that is starting; without a server there are none."""
    # a ComfyUI that serves has imported it before any pack
    prompt_server = getattr(sys.modules.get("server"), "PromptServer", None)
    routes = getattr(getattr(prompt_server, "instance", None), "routes", None)
    if routes is not None:
        routes.post(CONVERT)(_convert)


async def _convert(request: Any) -> Any:
    """Take {"workflow"}, answer {"workflow", "report"} or {"error"} with status 400."""
    from aiohttp import web

    try:
        body = await request.json()
        if not isinstance(body, dict) or "workflow" not in body:
            raise ValueError('expected an object with the key "workflow".')
        workflow, report = convert_workflow(body["workflow"])
    except ValueError as error:
        return web.json_response({"error": str(error)}, status=400)
    return web.json_response({"workflow": workflow, "report": report.to_dict()})
