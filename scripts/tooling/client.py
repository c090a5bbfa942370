"""ComfyUI's HTTP interface, as far as a demo and the tests need it."""

from __future__ import annotations

import json
import time
import urllib.error
import urllib.parse
import urllib.request
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

# A proxy from the environment must not see traffic to this machine.
_OPENER = urllib.request.build_opener(urllib.request.ProxyHandler({}))

Workflow = dict[str, dict[str, Any]]
"""A prompt in API form: node id -> {"class_type", "inputs"}."""


class NodeError(RuntimeError):
    """A node refused its inputs or failed while running.

    Attributes:
        node_id: The node's id in the workflow.
        node_type: Its class type, e.g. "K5_LoadModel".
        message: What the node said, as the page shows it.
        exception_type: Name of the exception, or the validation error's type.
    """

    def __init__(self, node_id: str, node_type: str, message: str, exception_type: str) -> None:
        super().__init__(f"{node_type} (node {node_id}): {message}")
        self.node_id = node_id
        self.node_type = node_type
        self.message = message
        self.exception_type = exception_type


class InterruptedRunError(RuntimeError):
    """The run was cancelled."""


@dataclass(frozen=True)
class OutputFile:
    """A file that a workflow wrote."""

    node_id: str
    filename: str
    subfolder: str
    type: str


@dataclass(frozen=True)
class RunResult:
    """What a finished prompt left in /history."""

    prompt_id: str
    outputs: dict[str, dict[str, Any]]
    """Node id -> what the node shows, e.g. {"images": [{"filename", "subfolder", "type"}]}."""
    history: dict[str, Any] = field(repr=False)
    """The whole entry."""

    def files(self) -> list[OutputFile]:
        """List every file named in the outputs, videos and images alike."""
        return [
            OutputFile(node_id, item["filename"], item.get("subfolder", ""), item["type"])
            for node_id, shown in self.outputs.items()
            for items in shown.values()
            if isinstance(items, list)
            for item in items
            if isinstance(item, dict) and "filename" in item
        ]


class Client:
    """Talks to one server. All paths start with a slash; all bodies are JSON."""

    def __init__(self, url: str, *, timeout: float = 60.0) -> None:
        self.url = url
        self._timeout = timeout

    def get(self, path: str) -> Any:
        """Return the JSON at `path`."""
        return json.loads(self.get_bytes(path))

    def get_bytes(self, path: str) -> bytes:
        """Return the body at `path`."""
        with _OPENER.open(self.url + path, timeout=self._timeout) as response:
            return response.read()

    def post(self, path: str, body: Any) -> Any:
        """Send JSON and return the JSON answer (None where the answer is empty)."""
        request = urllib.request.Request(
            self.url + path,
            data=json.dumps(body).encode(),
            headers={"Content-Type": "application/json"},
        )
        with _OPENER.open(request, timeout=self._timeout) as response:
            text = response.read()
        return json.loads(text) if text.strip() else None

    def object_info(self, node_type: str | None = None) -> dict[str, Any]:
        """Return the description of every node, or of one."""
        return self.get("/object_info" + (f"/{node_type}" if node_type else ""))

    def queue(self, workflow: Workflow, *, client_id: str = "") -> str:
        """Queue a workflow in API form and return its prompt id.

        Raises:
            NodeError: If the server refuses the inputs of a node.
        """
        body: dict[str, Any] = {"prompt": workflow}
        if client_id:
            body["client_id"] = client_id
        try:
            return self.post("/prompt", body)["prompt_id"]
        except urllib.error.HTTPError as error:
            raise _refusal(json.loads(error.read()), workflow) from error

    def wait(self, prompt_id: str, *, timeout: float = 600.0) -> RunResult:
        """Wait for a queued prompt to end.

        Raises:
            NodeError: If a node failed.
            InterruptedRunError: If the run was cancelled.
            TimeoutError: If it is not done within `timeout` seconds.
        """
        deadline = time.monotonic() + timeout
        while time.monotonic() < deadline:
            entry = self.get(f"/history/{prompt_id}").get(prompt_id)
            if entry is not None:
                return _result(prompt_id, entry)
            time.sleep(0.1)
        raise TimeoutError(f"prompt {prompt_id} is not done after {timeout:.0f} s")

    def run(self, workflow: Workflow, *, timeout: float = 600.0) -> RunResult:
        """Queue a workflow and wait for it; raises what `queue` and `wait` raise."""
        return self.wait(self.queue(workflow), timeout=timeout)

    def interrupt(self) -> None:
        """Do what the Cancel button does."""
        self.post("/interrupt", {})

    def download(self, file: OutputFile) -> bytes:
        """Return the content of an output."""
        query = {"filename": file.filename, "subfolder": file.subfolder, "type": file.type}
        return self.get_bytes("/view?" + urllib.parse.urlencode(query))

    def upload(self, path: Path) -> str:
        """Put a file into the server's input folder; returns the name that LoadImage takes."""
        boundary = "kandinsky5-form-boundary"
        head = (
            f'--{boundary}\r\nContent-Disposition: form-data; name="image"; '
            f'filename="{path.name}"\r\nContent-Type: application/octet-stream\r\n\r\n'
        )
        tail = (
            f'\r\n--{boundary}\r\nContent-Disposition: form-data; name="overwrite"\r\n\r\n'
            f"true\r\n--{boundary}--\r\n"
        )
        request = urllib.request.Request(
            self.url + "/upload/image",
            data=head.encode() + path.read_bytes() + tail.encode(),
            headers={"Content-Type": f"multipart/form-data; boundary={boundary}"},
        )
        with _OPENER.open(request, timeout=self._timeout) as response:
            return json.loads(response.read())["name"]


def _refusal(answer: dict[str, Any], workflow: Workflow) -> NodeError:
    """Turn the body of a refused /prompt into an error that names the node."""
    for node_id, report in answer.get("node_errors", {}).items():
        for error in report.get("errors", []):
            message = ": ".join(part for part in (error["message"], error.get("details")) if part)
            return NodeError(node_id, report["class_type"], message, error["type"])
    error = answer.get("error", {})
    node_id = str(error.get("extra_info", {}).get("node_id", ""))
    node_type = workflow.get(node_id, {}).get("class_type", "workflow")
    return NodeError(node_id, node_type, error.get("message", str(answer)), error.get("type", ""))


def _result(prompt_id: str, entry: dict[str, Any]) -> RunResult:
    for kind, data in entry["status"]["messages"]:
        if kind == "execution_error":
            raise NodeError(
                data["node_id"],
                data["node_type"],
                data["exception_message"].strip(),
                data["exception_type"],
            )
        if kind == "execution_interrupted":
            raise InterruptedRunError(f"prompt {prompt_id} was cancelled in node {data['node_id']}")
    return RunResult(prompt_id, entry["outputs"], entry)
