"""Describes this machine with its GPU, to label figures."""

from __future__ import annotations

from bench.machine import describe as describe_processor


def describe() -> dict[str, object]:
    """Name -> value, for the JSON file; ``device`` is ``cuda`` or ``cpu``. Needs torch."""
    import torch

    device = "cuda" if torch.cuda.is_available() else "cpu"
    found: dict[str, object] = {"device": device, "threads": torch.get_num_threads(), **describe_processor()}
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
