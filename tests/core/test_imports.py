"""Who imports whom: docs/architecture.md, checked in the source and in fresh interpreters."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections import Counter
from collections.abc import Iterable
from functools import cache
from graphlib import CycleError, TopologicalSorter
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

FLOORS = """
kandinsky_core/__init__
kandinsky_core/errors, kandinsky_core/seeds
kandinsky_core/files, kandinsky_core/prompts
kandinsky_core/family/config
kandinsky_core/family/shapes, kandinsky_core/family/variants
kandinsky_core/family/settings
kandinsky_core/family/tasks, kandinsky_core/family/given
kandinsky_core/family/typed
kandinsky_core/family/presets
kandinsky_core/family/__init__, kandinsky_core/weights
kandinsky_core/flow, kandinsky_core/attention, kandinsky_core/video, kandinsky_core/models/vae
kandinsky_core/text, kandinsky_core/models
kandinsky_core/checkpoint, kandinsky_core/caching
kandinsky_core/checkpoint/lora
kandinsky_core/checkpoint/__init__
kandinsky_core/workflows, kandinsky_core/nano, kandinsky_core/guided_model
kandinsky_core/pipeline
kandinsky_core/planning
kandinsky_core/generate
kandinsky_core/training/world, kandinsky_core/training/distributed
kandinsky_core/training/layout, kandinsky_core/training/precision
kandinsky_core/training/data
kandinsky_core/training
kandinsky_core/training/stages, kandinsky_core/training/studies
ALIASES
kandinsky_core/cli
kandinsky_core/__main__
nodes/host, nodes/host/attention
nodes/host/model
nodes/host/text
nodes/host/lora, nodes/host/plan
nodes/host/__init__
nodes
nodes/__init__
__init__
"""
"""The house from the ground up, a floor a line. A file imports from floors below its own, and from
its own part of its floor; parts that share a floor do not know each other. A part is a file without
.py or a folder with all in it that has no line of its own: the longest name counts."""

ALIASES = """
cache_study continuing_study drift edit evaluate lora preview pretrain sparsity_study train_vae
vae_gate
"""
"""Files of training/ that only forward `python -m` to what moved into its rooms."""


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


def read_house() -> dict[str, str]:
    """Source of every file of the house by its path, as "kandinsky_core/errors.py"."""
    paths = [ROOT / "__init__.py", *sources(CORE), *sources(NODES)]
    return {path.relative_to(ROOT).as_posix(): path.read_text(encoding="utf-8") for path in paths}


def read_floors() -> list[list[str]]:
    """Return the parts of every floor, from the ground."""
    aliases = ", ".join(f"kandinsky_core/training/{name}" for name in ALIASES.split())
    lines = FLOORS.replace("ALIASES", aliases).strip().splitlines()
    return [line.split(", ") for line in lines]


@cache
def imported(path: str, source: str) -> tuple[tuple[int, str, tuple[str, ...]], ...]:
    """Return (line, what is written, modules that it may mean) of every import of the house.

    Imports in functions and under TYPE_CHECKING count: the file knows what it names there too.
    """
    here = ("pack", *path.split("/")[:-1])
    found = []
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.ImportFrom) or not node.level:
            continue  # absolute ones of the house are refused by tests of their own
        up = here[: len(here) - node.level + 1]
        module = "/".join((*up, *(node.module.split(".") if node.module else ())))
        module = module.removeprefix("pack").removeprefix("/")
        for alias in node.names:
            names = (f"{module}/{alias.name}".removeprefix("/"), module)
            text = f"from {'.' * node.level}{node.module or ''} import {alias.name}"
            found.append((node.lineno, text, names))
    return tuple(found)


def file_of(names: tuple[str, ...], house: dict[str, str]) -> str | None:
    """Return the file that is meant by the first of the names that is a module."""
    for name in names:
        for path in (f"{name}.py", f"{name}/__init__.py".removeprefix("/")):
            if path in house:
                return path
    return None


def part_of(path: str, parts: Iterable[str]) -> str | None:
    """Return the part with the longest name that holds a file."""
    name = path.removesuffix(".py")
    return max((p for p in parts if name == p or name.startswith(f"{p}/")), key=len, default=None)


def faults_of(house: dict[str, str], floors: list[list[str]]) -> list[str]:
    """One sentence for each breach of the floors; see FLOORS.

    Args:
        house: Source of every file by its path.
        floors: Parts of every floor, from the ground.
    """
    listed = [(part, number) for number, parts in enumerate(floors) for part in parts]
    floor = dict(reversed(listed))
    where = "FLOORS in tests/core/test_imports.py"
    faults = [
        f"{part} stands on more than one floor: leave one of its lines in {where}"
        for part, count in Counter(part for part, _ in listed).items()
        if count > 1
    ]
    home = {path: part_of(path, floor) for path in house}
    faults += [
        f"{part} holds no file: take it out of {where}" for part in floor.keys() - home.values()
    ]
    arrows: dict[str, set[str]] = {path: set() for path in house}
    for path, source in house.items():
        part = home[path]
        if part is None:
            faults.append(
                f"{path} stands on no floor: name it or its folder in {where}, in a line above "
                "everything that it imports"
            )
            continue
        for line, text, names in imported(path, source):
            target = file_of(names, house)
            at = f"{path}:{line}: `{text}`"
            if target is None:
                faults.append(f"{at} names no file of the house")
                continue
            arrows[path].add(target)
            other = home[target]
            if other is None or other == part:
                continue
            high, low = floor[other], floor[part]
            places = f"{part} is on floor {low}, {other} on floor {high}"
            if high > low:
                faults.append(f"{at} reaches up to {target}: {places}; move what both need down")
            elif high == low:
                faults.append(
                    f"{at} reaches across to {target}: {places}, and parts of one floor do not "
                    "know each other; move what both need down, or give one a floor of its own"
                )
    try:
        TopologicalSorter(arrows).prepare()
    except CycleError as error:
        faults.append("a circle: " + ", which is imported by ".join(error.args[1]))
    return faults


def test_every_file_has_one_floor_and_imports_only_from_below():
    faults = faults_of(read_house(), read_floors())
    assert not faults, "\n".join(faults)


@pytest.mark.parametrize(
    "folder", sorted({path.rpartition("/")[0] for path in read_house()} - {""})
)
def test_an_import_from_the_next_floor_is_refused_in_every_file_of(folder):
    house, floors = read_house(), read_floors()
    floor = {part: number for number, parts in enumerate(floors) for part in parts}
    stands = {path: floor[part] for path in house if (part := part_of(path, floor))}
    first = {stands[path]: path for path in sorted(stands, reverse=True)}
    planted = dict(house)
    expected = []
    for path in [path for path in stands if path.rpartition("/")[0] == folder]:
        target = first[stands[path] + 1]
        *package, name = target.removesuffix(".py").removesuffix("/__init__").split("/")
        root = "." * (path.count("/") + 1)
        package, module = root + ".".join(package), root + ".".join((*package, name))
        planted[path] += f"""
from {package} import {name}
def late():
    from {package} import {name} as other
if TYPE_CHECKING:
    from {module} import Anything
"""
        line = house[path].count("\n") + 2
        expected += [(f"{path}:{line + more}: ", f"reaches up to {target}") for more in (0, 2, 4)]
    faults = faults_of(planted, floors)
    assert expected
    assert not [
        each for each in expected if not any(f.startswith(each[0]) and each[1] in f for f in faults)
    ]


def test_the_document_shows_the_same_floors():
    text = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    block = text.partition("## Floors")[2].split("```")[1]
    shown = [line.split(", ") for line in block.strip().splitlines()]
    number = {
        part if part.startswith("nodes") else f"kandinsky_core/{part}": floor
        for floor, parts in enumerate(shown)
        for part in parts
    }
    entries = ("kandinsky_core/__init__", "kandinsky_core/__main__", "__init__")
    climbed, seen = 0, set()
    for part in (part for parts in read_floors() for part in parts if part not in entries):
        room = part_of(part, number)
        assert room, f"docs/architecture.md does not show where {part} is"
        assert number[room] >= climbed, f"docs/architecture.md shows {part} too low"
        seen.add(room)
        climbed = number[room]
    assert seen == set(number)


def test_faults_of_a_made_up_house():
    floors = [["a"], ["b", "c"], ["c/d"], ["e"]]
    house = {"a.py": "", "b.py": "from .a import x", "c/__init__.py": "", "c/d.py": "", "e.py": ""}
    sound = house | {"c/d.py": "from . import y\nfrom ..b import x", "e.py": "from .c import d"}
    assert not faults_of(sound, floors)

    def only(sentence: str, changed: dict[str, str], floors: list[list[str]] = floors) -> None:
        (fault,) = faults_of(house | changed, floors)
        assert sentence in fault

    only("b.py:2: `from .c import d` reaches up to c/d.py", {"b.py": "\nfrom .c import d"})
    only("b is on floor 1, c/d on floor 2", {"b.py": "from .c import d"})
    only(
        "c/__init__.py:1: `from ..b import x` reaches across to b.py",
        {"c/__init__.py": "from ..b import x"},
    )
    only("`from .missing import x` names no file", {"e.py": "from .missing import x"})
    only("f/g.py stands on no floor", {"f/g.py": ""})
    only("f holds no file", {}, [*floors, ["f"]])
    only("a stands on more than one floor", {}, [*floors, ["a"]])
    only("circle", {"c/__init__.py": "from . import h", "c/h.py": "from . import x"})


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
