"""Describes this machine, to label figures."""

from __future__ import annotations

import os
import platform
from importlib.metadata import PackageNotFoundError, version

SHOWN = ("torch", "triton", "transformers", "safetensors", "numpy")


def describe() -> dict[str, object]:
    """Name -> value, for the JSON file; ``device`` is ``cuda`` or ``cpu``. Needs torch."""
    import torch

    device = "cuda" if torch.cuda.is_available() else "cpu"
    found: dict[str, object] = {
        "device": device,
        "python": platform.python_version(),
        "processors": os.cpu_count(),
        "threads": torch.get_num_threads(),
        **{name: _version(name) for name in SHOWN},
    }
    if device == "cuda":
        properties = torch.cuda.get_device_properties(0)
        found |= {
            "gpu": properties.name,
            "gpu_memory": properties.total_memory,
            "capability": f"{properties.major}.{properties.minor}",
            "cuda": torch.version.cuda,
            "devices": torch.cuda.device_count(),
        }
    return found


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None
