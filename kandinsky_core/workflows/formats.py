"""Reading and writing workflows in either format."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ..errors import WorkflowError
from .api_format import read_api, write_api
from .graph import Graph, Json
from .subgraphs import expand_subgraphs
from .ui_format import check_part, read_ui, write_ui

EXPECTED = (
    "expected a ComfyUI workflow, either as saved (nodes and links) or exported for the API "
    "(class_type and inputs)"
)


def load_json(path: Path) -> Any:
    """Return the JSON of a file.

    Raises:
        WorkflowError: It does not exist or is not JSON.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        reason = error.strerror or str(error)
        raise WorkflowError(
            f"{path} cannot be read ({reason}): give a workflow's .json."
        ) from error
    except ValueError as error:
        raise WorkflowError(f"{path} is not JSON ({error}): {EXPECTED}.") from error


def read_workflow(document: Any, wanted: Callable[[Json], bool]) -> tuple[Graph, list[str]]:
    """Read a workflow of either format.

    Args:
        document: What the file holds.
        wanted: Whether a node, as the UI format has it, is of interest; subgraphs that hold such a
            node are laid out.

    Returns:
        The workflow, and the names of the subgraphs that were laid out.

    Raises:
        WorkflowError: It is no workflow, or does not fit together.
    """
    laid_out: list[str] = []
    if not isinstance(document, dict) or not document:
        what = "an empty object" if document == {} else type(document).__name__
        raise WorkflowError(f"Found {what}: {EXPECTED}.")
    if isinstance(document.get("nodes"), list) and isinstance(document.get("links"), list):
        check_part(document)
        document, laid_out = expand_subgraphs(document, wanted)
        graph = read_ui(document)
    elif all(isinstance(each, dict) and "class_type" in each for each in document.values()):
        graph = read_api(document)
    else:
        keys = ", ".join(map(repr, list(document)[:3]))
        raise WorkflowError(f"Found an object with {keys}: {EXPECTED}.")
    graph.order()  # refuses dangling links and circles
    return graph, laid_out


def write_workflow(graph: Graph) -> Json:
    """Return the workflow in the format it came in."""
    return write_ui(graph) if graph.format == "ui" else write_api(graph)
