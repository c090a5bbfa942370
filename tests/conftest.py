"""Fixtures that several folders share: a real ComfyUI server, peak memory, where artefacts go."""

from __future__ import annotations

import json
import os
import re
import sys
from importlib import import_module, resources, util
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from tooling import comfyui, environment

from .official_pack import SMALL, small_workflow

ROOT = environment.ROOT
EXTRA_MODELS = "-extra-models"
"""Suffix of the folder of models that is not the server's own."""
MARKED_FOLDERS = ("server", "browser")
SHARED = Path(os.environ.get("KANDINSKY5_SHARED", ROOT.parent / "shared"))
"""What lies beside the project; KANDINSKY5_SHARED names another place."""
OFFICIAL_WORKFLOWS = SHARED / "fixtures" / "official_workflows"
VALUE_TYPES = ("INT", "FLOAT", "STRING", "BOOLEAN", "COMBO")
NOTES = ("MarkdownNote", "Note")
TEMPLATES = "comfyui_workflow_templates_json"


def pytest_addoption(parser):
    parser.addoption(
        "--export-workflows",
        action="store_true",
        help="write workflows/api/ from what the page makes of workflows/",
    )


def pytest_collection_modifyitems(items):
    """Everything in tests/server and tests/browser carries the marker of that name."""
    for item in items:
        folder = item.path.relative_to(ROOT / "tests").parts[0]
        if folder in MARKED_FOLDERS:
            item.add_marker(folder)


@pytest.fixture(scope="session")
def artifacts() -> Path:
    """Folder whose files are kept after the run: logs, screenshots, videos."""
    folder = ROOT / "artifacts"
    folder.mkdir(exist_ok=True)
    return folder


@pytest.fixture(scope="session")
def benchmark():
    """Yield a module of the benchmarks: `benchmark("reference")`.

    They are not installed, and their folder's parent must not be on the path (see pyproject.toml).
    """
    folder = ROOT / "benchmarks"
    spec = util.spec_from_file_location(
        "benchmarks", folder / "__init__.py", submodule_search_locations=[str(folder)]
    )
    sys.modules["benchmarks"] = package = util.module_from_spec(spec)
    spec.loader.exec_module(package)
    yield lambda name: import_module(f"benchmarks.{name}")
    for name in [name for name in sys.modules if name.split(".")[0] == "benchmarks"]:
        del sys.modules[name]


@pytest.fixture
def compiled_flex():
    """Skips where torch cannot compile flex attention for the processor."""
    if torch.backends.cpu.get_cpu_capability() == "DEFAULT":
        pytest.skip("torch compiles flex attention for processors with vector instructions alone")


@pytest.fixture
def foreign_workflow():
    """Read a workflow of other nodes by name, anew each time.

    Those of `SMALL` are part of the project. The official pack's files and ComfyUI's templates are
    not; a test skips and says which one it lacks.
    """

    def read(name):
        if name in SMALL:
            return small_workflow(name)
        path = OFFICIAL_WORKFLOWS / f"{name}.json"
        if "_kandinsky5_" in name:
            pytest.importorskip(TEMPLATES, reason="needs comfyui-workflow-templates-json")
            path = resources.files(TEMPLATES) / "templates" / f"{name}.json"
        elif not path.is_file():
            pytest.skip(f"needs {path}; KANDINSKY5_SHARED names another place than {SHARED}")
        return json.loads(path.read_text(encoding="utf-8"))

    return read


@pytest.fixture(scope="session")
def to_api():
    """Return what the page does before it queues a workflow: `to_api(workflow, inputs_of) -> API
    form`.

    `inputs_of(type)` gives a node's {"required": {name: [type, options]}, "optional": {...}}.
    """

    def convert(workflow, inputs_of):
        links = {link[0]: [str(link[1]), link[2]] for link in workflow["links"]}
        nodes = (node for node in workflow["nodes"] if node["type"] not in NOTES)
        return {str(node["id"]): _api_node(node, links, inputs_of(node["type"])) for node in nodes}

    return convert


def _api_node(node, links, spec):
    saved = list(node["widgets_values"])
    inputs = {}
    for name, (kind, *options) in {**spec["required"], **spec.get("optional", {})}.items():
        if not isinstance(kind, str) or kind in VALUE_TYPES:
            options = options[0] if options else {}
            inputs[name] = saved.pop(0) if saved else options["default"]
            if options.get("control_after_generate"):
                saved.pop(0)
    for each in node["inputs"]:
        if each["link"] is not None:
            inputs[each["name"]] = links[each["link"]]
    return {"class_type": node["type"], "inputs": inputs}


@pytest.fixture(scope="session")
def comfy_server(tmp_path_factory, artifacts):
    """Yield a real ComfyUI with the pack linked in, one for the whole run.

    `.base` is its folder (models/, input/, output/), `.log()` what it printed, `.url` the page.
    `EXTRA_MODELS` beside it is a second tree of models, known from an extra_model_paths file.
    """
    base = tmp_path_factory.mktemp("comfyui")
    extra = base.with_name(base.name + EXTRA_MODELS)
    folders = {name: name for name in ("diffusion_models", "text_encoders", "vae")}
    for name in folders:
        (extra / name).mkdir(parents=True)
    config = extra / "extra_model_paths.yaml"  # JSON is YAML
    config.write_text(json.dumps({"tests": {"base_path": str(extra), **folders}}), "utf-8")
    arguments = ("--extra-model-paths-config", str(config))
    with comfyui.Server(base, arguments=arguments) as server:
        yield server
    (artifacts / "comfyui.log").write_text(server.log(), encoding="utf-8")


@pytest.fixture(scope="session")
def extra_models(comfy_server) -> Path:
    """Folder of models that the server knows from an extra_model_paths file only."""
    return comfy_server.base.with_name(comfy_server.base.name + EXTRA_MODELS)


@pytest.fixture
def comfy(comfy_server):
    """HTTP client of the server: `comfy.run(api_workflow) -> RunResult`, or raises NodeError.

    After each test the server must still be running.
    """
    yield comfy_server.client
    assert comfy_server.running(), f"the server died:\n{comfy_server.log()[-3000:]}"


@pytest.fixture(scope="session")
def pack_log_lines(comfy_server) -> list[str]:
    """Lines of the boot log that speak of the pack."""
    return [
        line
        for line in comfy_server.boot_log.splitlines()
        if re.search(rf"{comfyui.PACK}|kandinsky", line, re.IGNORECASE)
    ]


@pytest.fixture(scope="session")
def write_gguf():
    """Write a GGUF file with the package gguf.

    `write_gguf(path, arrays, "Q8_0", architecture=..., metadata={...})` quantises the matrices
    whose rows divide into blocks and stores the rest as F32; arrays that are uint8 already are
    taken for the bytes of quantised rows.
    """
    gguf = pytest.importorskip("gguf")

    def write(path, arrays, kind="F16", *, architecture="kandinsky5", metadata=None):
        writer = gguf.GGUFWriter(path, architecture)
        for key, text in (metadata or {}).items():
            writer.add_string(key, text)
        for name, array in arrays.items():
            data, as_kind = np.asarray(array), gguf.GGMLQuantizationType[kind]
            if data.dtype != np.uint8:
                fits = data.ndim > 1 and data.shape[-1] % gguf.GGML_QUANT_SIZES[as_kind][0] == 0
                as_kind = as_kind if fits else gguf.GGMLQuantizationType.F32
                data = gguf.quants.quantize(data.astype(np.float32), as_kind)
            writer.add_tensor(name, data, raw_dtype=as_kind)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        return path

    return write


@pytest.fixture(scope="session")
def write_mmproj(write_gguf):
    """Write the vision tower of Qwen2.5-VL as llama.cpp's converter does.

    `write_mmproj(path, state, "F16")` takes transformers' names with "visual." before them, those
    of other parts of the model are left out; `fused` keeps queries, keys and values together, as
    its later versions do.
    """
    gguf = pytest.importorskip("gguf")
    table = gguf.get_tensor_name_map(gguf.MODEL_ARCH.MMPROJ, 32)

    def write(path, state, kind="F16", *, fused=False, projector="qwen2.5vl_merger"):
        arrays = {}
        for name, tensor in state.items():
            parts = {name: tensor}
            if ".qkv." in name and not fused:
                thirds = np.split(np.asarray(tensor), 3)
                parts = {name.replace("qkv", "qkv"[i]): thirds[i] for i in range(3)}
            if name == "visual.patch_embed.proj.weight":
                arrays["v.patch_embd.weight"] = tensor[:, :, 0]
                arrays["v.patch_embd.weight.1"] = tensor[:, :, 1]
            elif name.startswith("visual."):
                arrays |= {table.get_name(k, (".weight", ".bias")): v for k, v in parts.items()}
        metadata = {"clip.projector_type": projector}
        return write_gguf(path, arrays, kind, architecture="clip", metadata=metadata)

    return write


class PeakMemory(TorchDispatchMode):
    """Largest number of bytes held by tensors made inside the context.

    Args:
        given: Tensors that were there before, whose views do not count.
    """

    def __init__(self, *given: torch.Tensor) -> None:
        super().__init__()
        self.peak = 0
        self.given = {tensor.untyped_storage()._cdata for tensor in given}
        self.storages: dict[int, torch.UntypedStorage] = {}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, tuple | list) else (result,):
            if isinstance(tensor, torch.Tensor):
                storage = tensor.untyped_storage()
                if storage._cdata not in self.given:
                    self.storages.setdefault(storage._cdata, storage._weak_ref())
        self.storages = {
            key: weak
            for key, weak in self.storages.items()
            if not torch.UntypedStorage._expired(weak)
        }
        held = 0
        for weak in self.storages.values():
            storage = torch.UntypedStorage._new_with_weak_ptr(weak)
            held += storage.nbytes()
        self.peak = max(self.peak, held)
        return result


@pytest.fixture
def peak_memory():
    """Count bytes of tensors: `with peak_memory(*given) as memory: ...; memory.peak`.

    It sees the operations of its own thread alone, so there is one.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield PeakMemory
    torch.set_num_threads(before)
