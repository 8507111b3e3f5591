"""The models whose numbers are compared, and engines with them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from archon_core import assemble
from archon_core.contracts.engine_config import OptimizerConfig
from archon_engine.options.archon import ArchonEngineConfig, ArchonOptions
from gpu.records import Context

ModelName = Literal["qwen3", "qwen3_moe", "critic"]
MODELS: tuple[ModelName, ...] = ("qwen3", "qwen3_moe", "critic")

SIZES: Mapping[str, Mapping[str, int]] = {
    "cuda": {"vocab_size": 4096, "hidden_size": 256, "intermediate_size": 512, "head_dim": 64},
    "cpu": {"vocab_size": 256, "hidden_size": 64, "intermediate_size": 96, "head_dim": 16},
}
SHAPE = {
    "num_hidden_layers": 4,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "max_position_embeddings": 512,
    "tie_word_embeddings": False,
}
EXPERTS = {"num_experts": 8, "num_experts_per_tok": 2, "norm_topk_prob": True, "mlp_only_layers": [0]}

ADAMW = OptimizerConfig(type="adamw", lr=1e-3, weight_decay=0.1, eps=1e-3, gradient_clipping=0.0)
"""No clipping: recorded gradients are the engine's own. An epsilon that keeps Adam from turning the rounding of nearly
zero gradients into whole steps."""
MUON = OptimizerConfig(type="muon", lr=1e-3, weight_decay=0.1, eps=1e-3, gradient_clipping=0.0)

SEED = 1
STEPS = 2


def model_config(name: ModelName, device: str) -> dict[str, Any]:
    """The content of a ``config.json``."""
    sizes = SIZES[device]
    if name == "qwen3_moe":
        experts = {**EXPERTS, "moe_intermediate_size": sizes["intermediate_size"] // 4}
        return {"model_type": "qwen3_moe", **sizes, **SHAPE, **experts}
    return {"model_type": "qwen3", **sizes, **SHAPE}


def build(
    name: ModelName,
    context: Context,
    *,
    path: Path | None = None,
    dtype: str | None = "float32",
    layout: str = "archon:d1",
    optimizer: OptimizerConfig = ADAMW,
    recompute: bool = False,
    shares_prefixes: bool = False,
    **options: Any,
) -> Any:
    """An initialised engine.

    Args:
        path: checkpoint with its weights; ``None`` draws them.
        dtype: of computation; ``None`` for the device's default.
        recompute: ``gradient_checkpointing``.
        shares_prefixes: ``enable_tree_training``.
        options: of ``actor.archon``; compilation is off where it is not named.
    """
    options = {"enable_compile": False, **options}
    source: dict[str, Any] = (
        {"model_config": model_config(name, context.device)} if path is None else {"path": str(path)}
    )
    config = ArchonEngineConfig(
        backend=layout,
        is_critic=name == "critic",
        dtype=dtype,
        gradient_checkpointing=recompute,
        enable_tree_training=shares_prefixes,
        optimizer=optimizer,
        archon=ArchonOptions(),
        **source,
    )
    # Options of other packages have no fields here; engines read them by name.
    vars(config.archon).update(options)
    explicit = frozenset({"actor.dtype", *(f"actor.archon.{option}" for option in options)})
    engine = assemble(config, seed=SEED, total_steps=STEPS, explicit=explicit)
    engine.initialize()
    return engine
