"""Attention behind one contract: `attend(q, k, v, *, mask=None)`."""

from .api import Attend, attend
from .reference import attend_reference

__all__ = ["Attend", "attend", "attend_reference"]
