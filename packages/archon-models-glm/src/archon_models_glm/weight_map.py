"""Hugging Face's names of GLM weights and ours."""

from __future__ import annotations

from archon_core.models.expert_rules import beside_experts, experts_one_by_one, fused_experts
from archon_core.models.head_rules import head_rules
from archon_core.models.prediction_layers import drop_prediction_layers
from archon_core.models.weight_map import WeightMap
from archon_core.models.weight_rules import Drop, Rename, Tie
from archon_models_glm.arguments import GlmArguments

HF, OURS = "model.layers.{layer}", "layers.{layer}"


def weight_map(arguments: GlmArguments) -> WeightMap:
    """The rules for a model of these arguments: experts are saved one by one, read from the fused form too."""
    rules = _outside_experts(arguments)
    return WeightMap(
        (*rules, *experts_one_by_one(HF, OURS)), alternatives=(WeightMap((*rules, *fused_experts(HF, OURS))),)
    )


def _outside_experts(arguments: GlmArguments) -> list[Rename | Tie | Drop]:
    rules: list[Rename | Tie | Drop] = [
        Rename("model.embed_tokens.weight", "embed.weight"),
        Rename(f"{HF}.self_attn.{{projection}}.weight", f"{OURS}.attention.{{projection}}.weight"),
        Rename(f"{HF}.input_layernorm.weight", f"{OURS}.attention_norm.weight"),
        Rename(f"{HF}.post_attention_layernorm.weight", f"{OURS}.mlp_norm.weight"),
        *beside_experts(
            HF,
            OURS,
            has_dense=arguments.n_dense_layers > 0,
            has_shared=arguments.moe.shared_intermediate_size > 0,
        ),
        Rename("model.norm.weight", "norm.weight"),
        *drop_prediction_layers(arguments.n_layers, arguments.n_prediction_layers),
    ]
    if arguments.qkv_bias:
        rules.append(Rename(f"{HF}.self_attn.{{projection}}.bias", f"{OURS}.attention.{{projection}}.bias"))
    return rules + head_rules(tied=arguments.tied, critic=False, tied_in_files=arguments.tied)
