"""Who imports whom: docs/architecture.md, checked in the source and in fresh interpreters."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
CORE = ROOT / "kandinsky_core"
NODES = ROOT / "nodes"

HOST_MODULES = {"comfy", "comfy_extras", "comfy_execution", "folder_paths", "server", "nodes"}
HOST_MODULES |= {"node_helpers", "latent_preview", "execution"}
CORE_NEEDS = {"torch", "safetensors", "einops", "numpy", "cv2"}
OPTIONAL = {"transformers", "diffusers", "av", "tqdm", "tokenizers", "PIL", "sentencepiece", "gguf"}
REFUSED = sorted(OPTIONAL | HOST_MODULES | {"comfy_api", "huggingface_hub", "torchvision"})

# What each part of the core may not know, nearest the bottom first.
FORBIDDEN_IN_CORE = {
    "family": {"models", "attention", "flow", "text", "checkpoint", "generate", "training"},
    "weights": {"models", "attention", "flow", "text", "checkpoint", "generate", "training"},
    "attention": {"models", "flow", "text", "checkpoint", "generate", "training"},
    "models": {"flow", "text", "checkpoint", "generate", "training"},
    "caching": {"flow", "text", "checkpoint", "generate", "training"},
    "flow": {"models", "attention", "text", "checkpoint", "generate", "training"},
    "text": {"models", "attention", "flow", "generate", "training"},
    "checkpoint": {"flow", "generate", "training"},
    "video": {"models", "attention", "flow", "text", "checkpoint", "generate", "training"},
    "generate": {"training"},
}


def sources(folder: Path) -> list[Path]:
    return sorted(folder.rglob("*.py"))


def imports(path: Path, *, top_level_only: bool = False) -> list[tuple[int, str]]:
    """Return (leading dots, dotted name) of every import; `from . import x` gives (1, "x")."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    found: list[tuple[int, str]] = []
    for node in at_import_time(tree) if top_level_only else ast.walk(tree):
        if isinstance(node, ast.Import):
            found += [(0, alias.name) for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.append((node.level, node.module))
        elif isinstance(node, ast.ImportFrom):
            found += [(node.level, alias.name) for alias in node.names]
    return found


def at_import_time(tree: ast.AST):
    """Walk what runs on import: no function bodies, no `if TYPE_CHECKING` blocks."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            continue
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            continue
        yield node
        yield from at_import_time(node)


def modules_of_core() -> list[str]:
    names = [".".join(path.relative_to(ROOT).with_suffix("").parts) for path in sources(CORE)]
    return [name.removesuffix(".__init__") for name in names]


def run_fresh(code: str) -> subprocess.CompletedProcess[str]:
    """Run code in a new interpreter with the project's root on its path."""
    prelude = f"import sys; sys.path.insert(0, {str(ROOT)!r})\n"
    return subprocess.run(
        [sys.executable, "-c", prelude + code], capture_output=True, text=True, check=False
    )


def test_core_imports_with_its_own_requirements_alone():
    code = f"""
import importlib, importlib.abc
class Refuse(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {REFUSED!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)
sys.meta_path.insert(0, Refuse())
for name in {modules_of_core()!r}:
    importlib.import_module(name)
"""
    result = run_fresh(code)
    assert result.returncode == 0, result.stderr


def test_importing_the_core_prints_nothing_and_touches_no_device_and_no_file():
    code = f"""
import importlib, os, random
import cv2, einops, numpy, safetensors, torch
random.seed(0); torch.manual_seed(0)
before = (os.getcwd(), dict(os.environ), random.getstate(), torch.get_rng_state().tolist(),
          torch.get_num_threads(), torch.get_default_dtype(), torch.is_grad_enabled())
def audit(event, args):
    if event == "open" and isinstance(args[1], str) and set(args[1]) & set("wax+"):
        if "__pycache__" not in str(args[0]): raise SystemExit(f"opened {{args[0]}} for writing")
    if event in ("os.mkdir", "socket.connect", "subprocess.Popen"):
        if "__pycache__" not in str(args[0]): raise SystemExit(f"{{event}} {{args}}")
sys.addaudithook(audit)
for name in {modules_of_core()!r}:
    importlib.import_module(name)
after = (os.getcwd(), dict(os.environ), random.getstate(), torch.get_rng_state().tolist(),
         torch.get_num_threads(), torch.get_default_dtype(), torch.is_grad_enabled())
assert before == after, "global state changed"
assert not torch.cuda.is_initialized(), "a CUDA context was made"
"""
    result = run_fresh(code)
    assert result.returncode == 0, result.stderr or result.stdout
    assert result.stdout == ""


@pytest.mark.parametrize("path", sources(CORE), ids=lambda path: str(path.relative_to(ROOT)))
def test_core_module_imports_at_top_only_what_the_core_needs(path):
    allowed = CORE_NEEDS | set(sys.stdlib_module_names)
    names = {name.split(".")[0] for dots, name in imports(path, top_level_only=True) if not dots}
    assert names <= allowed
    everywhere = {name.split(".")[0] for dots, name in imports(path) if not dots}
    assert not everywhere & (HOST_MODULES | {"comfy_api"})
    assert "kandinsky_core" not in everywhere, "imports inside the core are relative"


@pytest.mark.parametrize("path", sources(CORE), ids=lambda path: str(path.relative_to(ROOT)))
def test_core_part_does_not_know_the_parts_above_it(path):
    package = path.relative_to(ROOT).parent.parts
    part = path.relative_to(CORE).parts[0].removesuffix(".py")
    targets = {
        (*package[: len(package) - dots + 1], *name.split("."))[1]
        for dots, name in imports(path)
        if dots and len(package) - dots + 1 >= 1
    }
    assert not targets & FORBIDDEN_IN_CORE.get(part, set())


@pytest.mark.parametrize("path", sources(NODES), ids=lambda path: str(path.relative_to(ROOT)))
def test_node_file_uses_only_exported_names_of_the_core(path):
    for dots, name in imports(path):
        parts = name.split(".")
        if "kandinsky_core" in parts:
            assert dots, f"{path.name} imports the core absolutely"
            depth = len(parts) - parts.index("kandinsky_core")
            assert depth <= 2, f"{name} is a submodule: use what the package's __init__ exports"
            last = CORE.joinpath(*parts[parts.index("kandinsky_core") + 1 :])
            assert last.is_dir() or last.with_suffix(".py").is_file()


@pytest.mark.parametrize("path", sources(NODES), ids=lambda path: str(path.relative_to(ROOT)))
def test_only_the_adapter_imports_host_internals(path):
    if path.relative_to(NODES).parts[0].startswith("host"):
        return
    names = {name.split(".")[0] for dots, name in imports(path) if not dots}
    assert not names & HOST_MODULES


def test_pack_root_imports_nothing_when_imported():
    code = """
before = set(sys.modules)
import importlib.util
spec = importlib.util.spec_from_file_location("pack", sys.path[0] + "/__init__.py",
                                              submodule_search_locations=[sys.path[0]])
module = importlib.util.module_from_spec(spec); sys.modules["pack"] = module
spec.loader.exec_module(module)
assert not {"torch", "comfy_api", "pack.nodes"} & set(sys.modules)
assert module.WEB_DIRECTORY == "./web"
assert not hasattr(module, "NODE_CLASS_MAPPINGS"), "ComfyUI would ignore comfy_entrypoint"
"""
    result = run_fresh(code)
    assert result.returncode == 0, result.stderr
