"""The networks: CrossDiT and the two autoencoders."""

from .dit import CrossDiT
from .ops import Ops, TorchOps

__all__ = ["CrossDiT", "Ops", "TorchOps"]
