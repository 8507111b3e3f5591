"""Recognises visual models and data sets, which Archon does not train on, also without network access."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from pathlib import Path

NEEDED = "images need models with a vision encoder, and batches with pixels"

_MODEL = re.compile(
    r"(^|[-_.])(\w*VL|VLM?|Vision|Omni)([-_.\d]|$)|Qwen3\.[56]|llava|internvl|smolvlm|paligemma|pixtral|idefics|minicpm-v"
    r"|gemma-3-(4|12|27)b|gemma-3n|llama-4|glm-4\.\d+v|molmo|multimodal",
    re.IGNORECASE,
)
"""Names of model families that read images. Qwen3.5 and Qwen3.6 do in every size."""

DATASETS = frozenset(("clevr_count_70k", "geometry3k", "virl39k", "mmmu", "mathvista", "mathvision"))
"""Names of data sets of images, in lower case, as the last part of a hub id or a path."""


def explain_visual(models: Iterable[tuple[str, str]], datasets: Iterable[tuple[str, str]]) -> str | None:
    """The error for a run on images; ``None`` for a run on text.

    Args:
        models: option and checkpoint folder or hub id, of every model.
        datasets: option and path or hub id, of every data set.
    """
    found = [f"{option}={path}" for option, path in models if is_visual_model(path)]
    found += [f"{option}={path}" for option, path in datasets if is_visual_dataset(path)]
    if not found:
        return None
    return f"visual models and data sets: found {', '.join(found)}; allowed are text models and text data: {NEEDED}"


def is_visual_model(path: str) -> bool:
    """Whether a checkpoint folder's configuration, or else the name of a hub id, is that of a visual model."""
    try:
        entries = json.loads((Path(path).expanduser() / "config.json").read_text(encoding="utf-8"))
    except (OSError, RuntimeError, ValueError):
        return _MODEL.search(_last(path)) is not None
    return isinstance(entries, dict) and "vision_config" in entries


def is_visual_dataset(path: str) -> bool:
    """Whether a path or hub id ends in the name of a known data set of images."""
    return _last(path).lower() in DATASETS


def _last(path: str) -> str:
    return path.rstrip("/").rpartition("/")[2]
