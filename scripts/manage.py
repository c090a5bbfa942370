"""One entry for everything a newcomer runs: set up, demo, a ComfyUI to try things in, all tests.

Standard library only, any platform. It needs Python 3.11 to 3.13 and looks for one on PATH
where the Python that started it is another. The Makefile's targets are this script's verbs.
"""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

SUPPORTED = ((3, 11), (3, 12), (3, 13))


def _runs(python: str) -> bool:
    """Whether `python` starts at all (a shim may not) and is a supported version."""
    probe = "import sys; print('%d.%d' % sys.version_info[:2])"
    try:
        result = subprocess.run([python, "-c", probe], capture_output=True, text=True, check=False)
    except OSError:
        return False
    return result.stdout.strip() in ["%d.%d" % version for version in SUPPORTED]


def _restart_with_supported_python() -> None:
    """Hand over to a supported Python on PATH, or say that none was found."""
    for version in SUPPORTED:
        found = shutil.which("python%d.%d" % version)
        if found and _runs(found):
            sys.exit(subprocess.call([found, *sys.argv]))
    names = ", ".join("%d.%d" % version for version in SUPPORTED)
    sys.exit(
        f"Python {names} is needed, this is {sys.version.split()[0]} and PATH has no other: "
        "install one of them and run the same command again."
    )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="manage.py", description=__doc__)
    verbs = parser.add_subparsers(dest="verb", required=True)

    setup = verbs.add_parser("setup", help="make the environment and fetch a ComfyUI")
    setup.add_argument("--profile", choices=["demo", "test"], default="demo")

    demo = verbs.add_parser("demo", help="one video from one prompt, through a real ComfyUI")
    demo.add_argument(
        "--prompt", default=os.environ.get("PROMPT") or "a red circle moves to the right"
    )
    demo.add_argument("--seed", type=int, default=int(os.environ.get("SEED") or 0))
    demo.add_argument("--output", type=Path, help="folder for the .mp4 and .png (default outputs/)")

    comfy = verbs.add_parser("comfy", help="leave a ComfyUI with the pack open until Ctrl-C")
    comfy.add_argument("--port", type=int, default=8188)
    comfy.add_argument("--no-open", action="store_true", help="only print the address")

    thumbnails = verbs.add_parser("thumbnails", help="make workflows/*.jpg anew with nano")
    thumbnails.add_argument("--seed", type=int, default=0)

    verbs.add_parser("bench", help="measure against diffusers; further arguments are its own")

    verbs.add_parser("docs", help="write pages of the core's public names into build/api")

    verbs.add_parser("mutants", help="plant faults in the core; further arguments are its own")

    verbs.add_parser("test", help="lint, types and every test; further arguments go to pytest")
    return parser


def _parse(given: list[str]) -> tuple[argparse.Namespace, list[str]]:
    """Our arguments, and those that another program gets (argparse would refuse its options)."""
    ours = 1 if given[:1] in (["bench"], ["mutants"], ["test"]) else len(given)
    return _parser().parse_args(given[:ours]), given[ours:]


def _end_like_ctrl_c(*_: object) -> None:
    raise KeyboardInterrupt


def main() -> int:
    """Run one verb; returns the exit code."""
    if sys.version_info[:2] not in SUPPORTED:
        _restart_with_supported_python()
    # A closed terminal or a plain kill must stop the server too.
    for name in ("SIGTERM", "SIGHUP"):
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), _end_like_ctrl_c)
    from tooling import api_pages, checks, comfyui, demo, environment, thumbnails

    arguments, passed_on = _parse(sys.argv[1:])
    try:
        if arguments.verb == "setup":
            environment.ensure(arguments.profile)
            comfyui.obtain()
        elif arguments.verb == "demo":
            demo.make_video(arguments.prompt, arguments.seed, arguments.output)
        elif arguments.verb == "comfy":
            demo.serve(arguments.port, open_page=not arguments.no_open)
        elif arguments.verb == "thumbnails":
            thumbnails.make_thumbnails(arguments.seed)
        elif arguments.verb == "bench":
            return checks.measure(passed_on)
        elif arguments.verb == "docs":
            return api_pages.write_pages()
        elif arguments.verb == "mutants":
            return checks.plant_faults(passed_on)
        else:
            return checks.run_all(passed_on)
    except KeyboardInterrupt:
        print("\nStopped.")
        return 130
    except environment.ToolingError as error:
        print(f"Error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
