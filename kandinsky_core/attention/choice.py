"""Backends by name, for those who choose one."""

from __future__ import annotations

from .api import Attend
from .auto import attend
from .backends.compiled import attend_compiled, compiled_missing
from .backends.dense import attend_dense
from .backends.flex import flex_missing, make_attend_flex
from .backends.gathered import attend_gathered
from .backends.packages import PACKAGES
from .reference import attend_reference

_ALWAYS: dict[str, Attend] = {
    "auto": attend,
    "dense": attend_dense,
    "gathered": attend_gathered,
    "reference": attend_reference,
}

BACKENDS = (*_ALWAYS, "flex", *PACKAGES, "compiled")
"""Names that `load_backend` knows. "auto" chooses among those that compute the same."""


def missing(name: str) -> str | None:
    """Return why a backend cannot be loaded here; None if it can."""
    if name in PACKAGES:
        try:
            PACKAGES[name].load()
        except ImportError as error:
            return f"{PACKAGES[name].project} cannot be imported ({error})"
        return None
    reasons = {"flex": flex_missing, "compiled": compiled_missing}
    return reasons[name]() if name in reasons else None


def load_backend(name: str = "auto") -> Attend:
    """Get a backend.

    Args:
        name: One of `BACKENDS`. "auto" chooses by device, dtype, size and density; "flex" compiles
            at its first call; "sage" is an approximation; "compiled" has to be built once.

    Returns:
        An `Attend`; what its kernel cannot do, it hands to one that computes the same.

    Raises:
        ValueError: There is no such backend, or it cannot be loaded here.
    """
    if name not in BACKENDS:
        raise ValueError(
            f"attention backend {name!r} does not exist; choose one of {', '.join(BACKENDS)}"
        )
    reason = missing(name)
    if reason is not None:
        available = ", ".join(other for other in BACKENDS if missing(other) is None)
        raise ValueError(
            f"attention backend {name!r} cannot be used: {reason}; choose one of {available}"
        )
    if name in PACKAGES:
        return PACKAGES[name].adapt(PACKAGES[name].load(), attend)
    if name == "flex":
        return make_attend_flex()
    return attend_compiled if name == "compiled" else _ALWAYS[name]
