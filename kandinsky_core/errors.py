"""Errors that a user can cause, and the one way to ask for an optional package.

Every message is one sentence: which input, what was expected, what was found, what to do.
"""

from __future__ import annotations

import importlib
from types import ModuleType


class CheckpointError(ValueError):
    """A weight file cannot be used: missing, damaged, or of another model."""


class OutputError(ValueError):
    """A file cannot be written: no room, no permission, or no such folder."""


class WorkflowError(ValueError):
    """A ComfyUI workflow cannot be read or converted."""


class MissingExtraError(ImportError):
    """An optional package is needed and not installed."""


def import_extra(module: str, extra: str) -> ModuleType:
    """Import an optional package.

    Args:
        module: Name to import, e.g. `"av"`.
        extra: The pip extra of this package that installs it, e.g. `"video"`.

    Returns:
        The imported module.

    Raises:
        MissingExtraError: The package is not installed.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise MissingExtraError(
            f"This needs the package {module!r}, which cannot be imported ({error}): "
            f'install it with pip install "kandinsky-core[{extra}]".'
        ) from error
