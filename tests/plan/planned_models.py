"""Models to plan."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from archon_core import registry
from archon_core.models.anatomy import ModelAnatomy
from archon_core.plugins import ModelSpec

SMALL = {
    "model_type": "qwen3",
    "hidden_size": 256,
    "intermediate_size": 768,
    "num_hidden_layers": 8,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 32,
    "vocab_size": 1024,
    "tie_word_embeddings": False,
}
MOE = json.loads(Path(__file__, "../../data/qwen3-30b-a3b.json").resolve().read_text(encoding="utf-8"))


def anatomy_of(model: dict[str, Any]) -> ModelAnatomy:
    """The anatomy of a model of the Qwen family."""
    return registry().get(ModelSpec, model["model_type"]).load_part("anatomy")(model)
