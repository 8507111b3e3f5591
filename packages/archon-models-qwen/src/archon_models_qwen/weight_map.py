"""Hugging Face's names of Qwen weights and ours."""

from __future__ import annotations

from archon_core.models.weight_map import Drop, Rename, Tie, WeightMap
from archon_models_qwen.arguments import QwenArguments


def weight_map(arguments: QwenArguments) -> WeightMap:
    """The rules for a model of these arguments."""
    hf, ours = "model.layers.{layer}", "layers.{layer}"
    rules: list[Rename | Tie | Drop] = [
        Rename("model.embed_tokens.weight", "embed.weight"),
        Rename(f"{hf}.self_attn.{{projection}}.weight", f"{ours}.attention.{{projection}}.weight"),
        Rename(f"{hf}.mlp.{{projection}}.weight", f"{ours}.mlp.{{projection}}.weight"),
        Rename(f"{hf}.input_layernorm.weight", f"{ours}.attention_norm.weight"),
        Rename(f"{hf}.post_attention_layernorm.weight", f"{ours}.mlp_norm.weight"),
        Rename("model.norm.weight", "norm.weight"),
        # Checkpoints written by old versions of transformers hold these constants.
        Drop(f"{hf}.self_attn.rotary_emb.inv_freq"),
        Drop("model.rotary_emb.inv_freq"),
    ]
    if arguments.qkv_bias:
        rules.append(Rename(f"{hf}.self_attn.{{projection}}.bias", f"{ours}.attention.{{projection}}.bias"))
    if arguments.critic:
        rules += [Rename("score.weight", "head.weight", init_if_missing=True), Drop("lm_head.weight")]
    elif arguments.tied:
        rules.append(Tie("head.weight", to="embed.weight", hf="lm_head.weight"))
    else:
        rules.append(Rename("lm_head.weight", "head.weight"))
    return WeightMap(tuple(rules))
