"""Hugging Face's names of DeepSeek weights and ours."""

from __future__ import annotations

from archon_core.models.encoded import Encoded
from archon_core.models.expert_rules import PROJECTIONS, beside_experts, experts_one_by_one, fused_experts
from archon_core.models.head_rules import head_rules
from archon_core.models.prediction_layers import drop_prediction_layers
from archon_core.models.weight_map import WeightMap
from archon_core.models.weight_rules import Drop, Rename, Tie
from archon_engine.models.encodings import BlockFp8
from archon_models_deepseek.arguments import DeepseekArguments

HF, OURS = "model.layers.{layer}", "layers.{layer}"


def weight_map(arguments: DeepseekArguments) -> WeightMap:
    """The rules for a model of these arguments: experts are saved one by one, read from the fused form too, and from
    FP8 if the configuration says so."""
    feed_forward = beside_experts(
        HF, OURS, has_dense=arguments.n_dense_layers > 0, has_shared=arguments.moe.shared_intermediate_size > 0
    )
    rules = (*_attention(arguments), *feed_forward, *_ends(arguments))
    one_by_one = experts_one_by_one(HF, OURS)
    forms = [WeightMap((*rules, *fused_experts(HF, OURS)))]
    if arguments.fp8_block is not None:
        forms.append(WeightMap((*rules, *one_by_one, *_fp8(arguments, arguments.fp8_block))))
    return WeightMap((*rules, *one_by_one), alternatives=tuple(forms))


def _fp8(arguments: DeepseekArguments, block: tuple[int, int]) -> list[Encoded]:
    """All projections inside layers; routers, norms, embedding and head are plain."""
    queries = ("q_proj",) if arguments.attention.query_rank is None else ("q_a_proj", "q_b_proj")
    attention = (*queries, "kv_a_proj_with_mqa", "kv_b_proj", "o_proj")
    owners = ["experts.{expert}."]
    if arguments.n_dense_layers:
        owners.append("")
    if arguments.moe.shared_intermediate_size:
        owners.append("shared_experts.")
    names = [f"{HF}.self_attn.{projection}.weight" for projection in attention]
    names += [f"{HF}.mlp.{owner}{projection}.weight" for owner in owners for projection in PROJECTIONS]
    return [Encoded(name, (name, f"{name}_scale_inv"), BlockFp8(*block)) for name in names]


def _attention(arguments: DeepseekArguments) -> list[Rename]:
    names = {"kv_a_proj_with_mqa": "kv_a_proj", "kv_a_layernorm": "kv_a_norm", "kv_b_proj": "kv_b_proj"}
    if arguments.attention.query_rank is None:
        names["q_proj"] = "q_proj"
    else:
        names |= {"q_a_proj": "q_a_proj", "q_a_layernorm": "q_a_norm", "q_b_proj": "q_b_proj"}
    names["o_proj"] = "o_proj"
    rules = [Rename(f"{HF}.self_attn.{hf}.weight", f"{OURS}.attention.{ours}.weight") for hf, ours in names.items()]
    biased = [hf for hf in ("q_a_proj", "kv_a_proj_with_mqa", "o_proj") if hf in names and arguments.attention_bias]
    return rules + [Rename(f"{HF}.self_attn.{hf}.bias", f"{OURS}.attention.{names[hf]}.bias") for hf in biased]


def _ends(arguments: DeepseekArguments) -> list[Rename | Tie | Drop]:
    rules: list[Rename | Tie | Drop] = [
        Rename("model.embed_tokens.weight", "embed.weight"),
        Rename(f"{HF}.input_layernorm.weight", f"{OURS}.attention_norm.weight"),
        Rename(f"{HF}.post_attention_layernorm.weight", f"{OURS}.mlp_norm.weight"),
        Rename("model.norm.weight", "norm.weight"),
        # A constant in checkpoints that DeepSeek published.
        Drop(f"{HF}.self_attn.rotary_emb.inv_freq"),
        *drop_prediction_layers(arguments.n_layers, arguments.n_prediction_layers),
    ]
    return rules + head_rules(tied=arguments.tied, critic=arguments.critic, tied_in_files=arguments.tied_in_files)
