"""Hugging Face's names of Qwen weights and ours."""

from __future__ import annotations

from archon_core.models.expert_rules import experts_one_by_one, fused_experts
from archon_core.models.head_rules import head_rules
from archon_core.models.weight_map import WeightMap
from archon_core.models.weight_rules import Drop, Rename, Tie
from archon_models_qwen.arguments import QwenArguments
from archon_models_qwen.moe_arguments import QwenMoEArguments

HF, OURS = "model.layers.{layer}", "layers.{layer}"

_MLP = Rename(f"{HF}.mlp.{{projection}}.weight", f"{OURS}.mlp.{{projection}}.weight")


def weight_map(arguments: QwenArguments) -> WeightMap:
    """The rules for a dense model of these arguments."""
    return WeightMap((*_outside_feed_forward(arguments), _MLP))


def moe_weight_map(arguments: QwenMoEArguments) -> WeightMap:
    """The rules for a model with experts: saved one by one, read from the fused form too."""
    shared = [*_outside_feed_forward(arguments), Rename(f"{HF}.mlp.gate.weight", f"{OURS}.moe.router.weight")]
    if not all(arguments.sparse):
        shared.append(_MLP)
    return WeightMap(
        (*shared, *experts_one_by_one(HF, OURS)), alternatives=(WeightMap((*shared, *fused_experts(HF, OURS))),)
    )


def _outside_feed_forward(arguments: QwenArguments) -> list[Rename | Tie | Drop]:
    rules: list[Rename | Tie | Drop] = [
        Rename("model.embed_tokens.weight", "embed.weight"),
        Rename(f"{HF}.self_attn.{{projection}}.weight", f"{OURS}.attention.{{projection}}.weight"),
        Rename(f"{HF}.input_layernorm.weight", f"{OURS}.attention_norm.weight"),
        Rename(f"{HF}.post_attention_layernorm.weight", f"{OURS}.mlp_norm.weight"),
        Rename("model.norm.weight", "norm.weight"),
        # Checkpoints written by old versions of transformers hold these constants.
        Drop(f"{HF}.self_attn.rotary_emb.inv_freq"),
        Drop("model.rotary_emb.inv_freq"),
    ]
    if arguments.qkv_bias:
        rules.append(Rename(f"{HF}.self_attn.{{projection}}.bias", f"{OURS}.attention.{{projection}}.bias"))
    return rules + head_rules(tied=arguments.tied, critic=arguments.critic, tied_in_files=arguments.tied_in_files)
