"""Command line: `python -m kandinsky_core`; `--help` lists the commands."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from .cli.parser import parse


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; errors a user can cause become one sentence and exit code 1."""
    try:
        parse(argv)()
    except (ValueError, ImportError, OSError) as error:
        sys.stderr.write(f"error: {error}\n")
        return 1
    except (RuntimeError, MemoryError) as error:
        from .models.vae.tiled_run import is_out_of_memory

        if not is_out_of_memory(error):
            raise
        sys.stderr.write(
            "error: memory ran out; make the clip smaller or shorter, or try --dtype bf16\n"
        )
        return 1
    except KeyboardInterrupt:
        sys.stderr.write("cancelled\n")
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
