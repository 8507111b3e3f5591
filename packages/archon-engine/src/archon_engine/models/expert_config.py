"""Reads the entries of mixtures of experts as DeepSeek-V3 names them, which GLM-4.5 and others share."""

from __future__ import annotations

from typing import TYPE_CHECKING

from archon_core.contracts.moe import MoESettings
from archon_core.errors import ModelError

if TYPE_CHECKING:
    from transformers import PreTrainedConfig


def dense_layers(config: PreTrainedConfig) -> int:
    """How many layers, the first ones, have no experts.

    Raises:
        ModelError: no layer has experts.
    """
    n_layers, n_dense = config.num_hidden_layers, config.first_k_dense_replace
    if not 0 <= n_dense < n_layers:
        raise ModelError(
            f"{config.model_type} configuration: found first_k_dense_replace {n_dense} and num_hidden_layers "
            f"{n_layers}; allowed are 0 to {n_layers - 1} dense layers, since at least one layer has experts"
        )
    return n_dense


def expert_settings(config: PreTrainedConfig) -> MoESettings:
    """The settings of the blocks: a router with sigmoid scores, a bias for choosing and groups, and a shared expert."""
    return MoESettings(
        hidden_size=config.hidden_size,
        intermediate_size=config.moe_intermediate_size,
        n_experts=config.n_routed_experts,
        top_k=config.num_experts_per_tok,
        hidden_act=config.hidden_act,
        score="sigmoid",
        norm_topk_prob=config.norm_topk_prob,
        scaling=config.routed_scaling_factor,
        n_groups=config.n_group,
        top_k_groups=config.topk_group,
        choice_bias=True,
        shared_intermediate_size=config.moe_intermediate_size * (config.n_shared_experts or 0),
    )
