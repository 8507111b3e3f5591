"""Describes this machine, to label figures."""

from __future__ import annotations

import os
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

SHOWN = ("torch", "triton", "transformers", "trl", "safetensors", "numpy")


def describe() -> dict[str, object]:
    """Processor, cores that this process may use, and the versions that matter; what is not installed is left out."""
    versions = {name: _version(name) for name in SHOWN}
    return {
        "cpu": _processor(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "python": platform.python_version(),
        **{name: found for name, found in versions.items() if found is not None},
    }


def _processor() -> str:
    """The model as Linux names it; elsewhere what Python knows."""
    file = Path("/proc/cpuinfo")
    lines = file.read_text(encoding="utf-8").splitlines() if file.is_file() else []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return " ".join(next(names, platform.processor() or platform.machine()).split())


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None
