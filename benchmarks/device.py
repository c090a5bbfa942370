"""Where the benchmarks run, and what is to be said of that machine."""

from __future__ import annotations

import platform
from importlib.metadata import version
from typing import Any

import torch

DEVICES = ("cpu", "cuda", "mps")


def find_device(name: str) -> torch.device:
    """Return a device by its name in `DEVICES`.

    Raises:
        ValueError: There is no such device here.
    """
    there = {
        "cpu": True,
        "cuda": torch.cuda.is_available(),
        "mps": torch.backends.mps.is_available(),
    }
    if not there[name]:
        found = ", ".join(each for each in DEVICES if there[each])
        raise ValueError(
            f"--device {name}: torch {torch.__version__} finds {found} here and no {name}; choose "
            f"what it finds, or install a build of torch that supports {name} on this machine"
        )
    return torch.device(name)


def machine(device: torch.device) -> dict[str, Any]:
    """Return what figures of this device were measured on."""
    capabilities = getattr(torch.cpu, "get_capabilities", dict)()
    return {
        **_accelerator(device),
        "processor": capabilities.get("cpu_name") or platform.processor() or platform.machine(),
        "vectors": torch.backends.cpu.get_cpu_capability(),
        "bf16 units": [name for name in ("avx512_bf16", "amx_bf16") if capabilities.get(name)],
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "diffusers": version("diffusers"),
        "python": platform.python_version(),
    }


def _accelerator(device: torch.device) -> dict[str, Any]:
    if device.type == "cpu":
        return {}
    if device.type != "cuda":
        return {"device": device.type}
    card = torch.cuda.get_device_properties(device)
    return {
        "device": card.name,
        "device memory": f"{card.total_memory / 2**30:.0f} GiB",
        "compute capability": f"{card.major}.{card.minor}",
        "cuda": torch.version.cuda,
    }
