"""Hugging Face's names of GLM weights and ours."""

from __future__ import annotations

from archon_core.models.prediction_layers import drop_prediction_layers
from archon_core.models.weight_map import WeightMap
from archon_core.models.weight_rules import Drop, Rename, Split, Stack, Tie
from archon_models_glm.arguments import GlmArguments

HF, OURS = "model.layers.{layer}", "layers.{layer}"

_ONE_BY_ONE = tuple(
    Stack(f"{HF}.mlp.experts.{{expert}}.{projection}.weight", f"{OURS}.moe.experts.{projection}")
    for projection in ("gate_proj", "up_proj", "down_proj")
)
"""Experts in files, as transformers writes them."""

_FUSED = (
    Split(f"{HF}.mlp.experts.gate_up_proj", (f"{OURS}.moe.experts.gate_proj", f"{OURS}.moe.experts.up_proj"), dim=1),
    Rename(f"{HF}.mlp.experts.down_proj", f"{OURS}.moe.experts.down_proj"),
)
"""Experts as transformers 5 holds them in memory, and as some files store them."""


def weight_map(arguments: GlmArguments) -> WeightMap:
    """The rules for a model of these arguments: experts are saved one by one, read from the fused form too."""
    rules = _outside_experts(arguments)
    return WeightMap((*rules, *_ONE_BY_ONE), alternatives=(WeightMap((*rules, *_FUSED)),))


def _outside_experts(arguments: GlmArguments) -> list[Rename | Tie | Drop]:
    rules: list[Rename | Tie | Drop] = [
        Rename("model.embed_tokens.weight", "embed.weight"),
        Rename(f"{HF}.self_attn.{{projection}}.weight", f"{OURS}.attention.{{projection}}.weight"),
        Rename(f"{HF}.input_layernorm.weight", f"{OURS}.attention_norm.weight"),
        Rename(f"{HF}.post_attention_layernorm.weight", f"{OURS}.mlp_norm.weight"),
        Rename(f"{HF}.mlp.gate.weight", f"{OURS}.moe.router.weight"),
        Rename(f"{HF}.mlp.gate.e_score_correction_bias", f"{OURS}.moe.router.choice_bias", keeps_fp32=True),
        Rename("model.norm.weight", "norm.weight"),
        *drop_prediction_layers(arguments.n_layers, arguments.n_prediction_layers),
    ]
    if arguments.qkv_bias:
        rules.append(Rename(f"{HF}.self_attn.{{projection}}.bias", f"{OURS}.attention.{{projection}}.bias"))
    if arguments.n_dense_layers:
        rules.append(Rename(f"{HF}.mlp.{{projection}}.weight", f"{OURS}.mlp.{{projection}}.weight"))
    if arguments.moe.shared_intermediate_size:
        rules.append(
            Rename(f"{HF}.mlp.shared_experts.{{projection}}.weight", f"{OURS}.moe.shared.{{projection}}.weight")
        )
    if arguments.tied:
        rules.append(Tie("head.weight", to="embed.weight", hf="lm_head.weight"))
    else:
        rules.append(Rename("lm_head.weight", "head.weight"))
    return rules
