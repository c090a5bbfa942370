"""What an installer reads: pyproject.toml, requirements.txt, constraints.txt."""

from __future__ import annotations

import json
import re

import tomllib
import yaml

from tooling.environment import CONSTRAINTS, EXTRAS, HOST_REQUIREMENTS, ROOT
from tooling.javascript import PINS

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


def lines(path):
    found = (line.split("#")[0].strip() for line in path.read_text(encoding="utf-8").splitlines())
    return [line for line in found if line]


def name_of(requirement):
    match = re.match(r"[A-Za-z0-9_.-]+", requirement)
    assert match, requirement
    return match[0].lower().replace("_", "-")


def test_requirements_for_comfyui_are_those_of_the_core_less_torch():
    needed = PROJECT["project"]["dependencies"]
    assert lines(ROOT / "requirements.txt") == [r for r in needed if name_of(r) != "torch"]


def test_everything_that_set_up_installs_has_one_pinned_version():
    pinned = {name_of(line): line for line in lines(CONSTRAINTS)}
    assert all(re.fullmatch(r"[^=<>~]+==[^=<>~]+", line) for line in pinned.values())
    extras = PROJECT["project"]["optional-dependencies"]
    wanted = {name_of(r) for group in extras.values() for r in group}
    wanted |= {name_of(r) for r in PROJECT["project"]["dependencies"] + lines(HOST_REQUIREMENTS)}
    with_host = {name_of(line) for line in lines(HOST_REQUIREMENTS) if "==" in line}
    assert wanted - {"kandinsky-core"} <= set(pinned) | with_host


def test_tools_run_before_a_commit_in_the_versions_of_the_checks():
    hooks = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text(encoding="utf-8"))
    tagged = {each["repo"].rpartition("/")[2]: each["rev"] for each in hooks["repos"]}
    pinned = dict(line.split("==") for line in lines(CONSTRAINTS))
    assert tagged["ruff-pre-commit"] == f"v{pinned['ruff']}"
    assert tagged["codespell"] == f"v{pinned['codespell']}"


def test_what_npm_installs_has_one_pinned_version_and_a_checksum():
    wanted = json.loads((PINS / "package.json").read_text(encoding="utf-8"))["devDependencies"]
    assert all(re.fullmatch(r"\d+\.\d+\.\d+", version) for version in wanted.values())
    locked = json.loads((PINS / "package-lock.json").read_text(encoding="utf-8"))["packages"]
    assert locked[""]["devDependencies"] == wanted
    packages = {name: each for name, each in locked.items() if name}
    assert {name: packages[f"node_modules/{name}"]["version"] for name in wanted} == wanted
    assert all({"version", "integrity"} <= set(each) for each in packages.values())


def test_set_up_names_extras_that_exist():
    extras = PROJECT["project"]["optional-dependencies"]
    assert {name for names in EXTRAS.values() for name in names.split(",")} <= set(extras)


def test_registry_name_and_comfy_table():
    assert "comfyui" not in PROJECT["project"]["name"].lower()
    assert PROJECT["tool"]["comfy"]["requires-comfyui"] == ">=0.3.75"
    assert PROJECT["tool"]["comfy"]["DisplayName"] == "Kandinsky 5"
