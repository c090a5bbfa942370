"""What the pack answers over HTTP, for the page's menu entries."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Callable
from typing import Any

from ...kandinsky_core.workflows import convert_workflow
from .inputs import read_prompts

CONVERT = "/kandinsky5/convert_workflow"
COUNT = "/kandinsky5/count_prompts"


def add_routes() -> None:
    """Add the pack's routes to the ComfyUI that is starting; without a server there are none."""
    # a ComfyUI that serves has imported it before any pack
    prompt_server = getattr(sys.modules.get("server"), "PromptServer", None)
    routes = getattr(getattr(prompt_server, "instance", None), "routes", None)
    if routes is not None:
        routes.post(CONVERT)(_convert)
        routes.post(COUNT)(_count)


async def _convert(request: Any) -> Any:
    """Take {"workflow"}, answer {"workflow", "report"} or {"error"} with status 400."""
    return await _answer(request, _converted)


def _converted(body: Any) -> dict[str, Any]:
    if not isinstance(body, dict) or "workflow" not in body:
        raise ValueError('expected an object with the key "workflow".')
    workflow, report = convert_workflow(body["workflow"])
    return {"workflow": workflow, "report": report.to_dict()}


async def _count(request: Any) -> Any:
    """Take the inputs of a prompt list, answer {"count"} or {"error"} with status 400."""
    return await _answer(request, _counted)


def _counted(body: Any) -> dict[str, int]:
    names = ("text", "file", "split")
    values = [body.get(name) for name in names] if isinstance(body, dict) else [None]
    if not all(isinstance(value, str) for value in values):
        raise ValueError(f"expected an object with texts under the keys {', '.join(names)}.")
    return {"count": len(read_prompts(*values))}


async def _answer(request: Any, work: Callable[[Any], dict[str, Any]]) -> Any:
    """Answer a body of JSON, worked on beside the event loop, which serves everything else."""
    from aiohttp import web

    text = await request.read()

    def answer() -> str:
        try:
            return json.dumps(work(json.loads(text)))
        except RecursionError as error:
            raise ValueError("the JSON is nested too deeply to be a workflow.") from error

    try:
        return web.json_response(text=await asyncio.to_thread(answer))
    except ValueError as error:
        return web.json_response({"error": str(error)}, status=400)
