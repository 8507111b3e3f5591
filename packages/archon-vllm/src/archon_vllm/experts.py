"""Mixtures of experts, which vLLM 0.32 loads wrongly when it gets new weights in place.

Every call succeeds, and log-probabilities differ by less than the canary's tolerance in bfloat16. So publications of
such models are refused unless the user allows them. The model is known from its configuration, or else from the names
of its tensors.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from archon_core.errors import ModelError
from archon_core.models.json_file import read_entries
from archon_core.serving.manifest import WeightManifest

_NUMBERS = ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts")
"""Entries of ``config.json`` with the number of experts."""

_PART = ".experts."
"""Part of the Hugging Face names of expert weights, in all families."""

FIX = (
    "vLLM 0.32 loads experts wrongly when it gets new weights, by less than the canary finds in bfloat16; use "
    "rollout.backend=served, or set vllm.allow_experts=true if the servers of a run in float32 pass the canary"
)


def config_has_experts(config: Mapping[str, Any]) -> bool:
    """Whether the content of a ``config.json``, or a section of it, gives a number of experts."""
    numbers = [config.get(name) for name in _NUMBERS]
    return any(isinstance(number, int) and number > 1 for number in numbers) or any(
        config_has_experts(section) for section in config.values() if isinstance(section, Mapping)
    )


def folder_has_experts(folder: str | Path) -> bool:
    """Whether a model folder is a mixture's; false for a hub id, and without a readable ``config.json``."""
    file = Path(folder) / "config.json"
    try:
        return file.is_file() and config_has_experts(read_entries(file))
    except (ModelError, OSError):
        return False


def published_expert(manifest: WeightManifest) -> str:
    """The first tensor of an expert; empty for a model without experts."""
    return next((entry.name for entry in manifest.tensors if _PART in entry.name), "")
