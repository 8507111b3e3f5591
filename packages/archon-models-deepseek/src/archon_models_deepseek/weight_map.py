"""Hugging Face's names of DeepSeek weights and ours."""

from __future__ import annotations

from archon_core.models.encoded import Encoded
from archon_core.models.prediction_layers import drop_prediction_layers
from archon_core.models.weight_map import WeightMap
from archon_core.models.weight_rules import Drop, Rename, Split, Stack, Tie
from archon_engine.models.encodings import BlockFp8
from archon_models_deepseek.arguments import DeepseekArguments

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


def weight_map(arguments: DeepseekArguments) -> WeightMap:
    """The rules for a model of these arguments: experts are saved one by one, read from the fused form too, and from
    FP8 if the configuration says so."""
    rules = (*_attention(arguments), *_feed_forward(arguments), *_ends(arguments))
    forms = [WeightMap((*rules, *_FUSED))]
    if arguments.fp8_block is not None:
        forms.append(WeightMap((*rules, *_ONE_BY_ONE, *_fp8(arguments, arguments.fp8_block))))
    return WeightMap((*rules, *_ONE_BY_ONE), alternatives=tuple(forms))


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
    names += [
        f"{HF}.mlp.{owner}{projection}.weight"
        for owner in owners
        for projection in ("gate_proj", "up_proj", "down_proj")
    ]
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


def _feed_forward(arguments: DeepseekArguments) -> list[Rename]:
    rules = [
        Rename(f"{HF}.mlp.gate.weight", f"{OURS}.moe.router.weight"),
        Rename(f"{HF}.mlp.gate.e_score_correction_bias", f"{OURS}.moe.router.choice_bias", keeps_fp32=True),
    ]
    if arguments.n_dense_layers:
        rules.append(Rename(f"{HF}.mlp.{{projection}}.weight", f"{OURS}.mlp.{{projection}}.weight"))
    if arguments.moe.shared_intermediate_size:
        rules.append(
            Rename(f"{HF}.mlp.shared_experts.{{projection}}.weight", f"{OURS}.moe.shared.{{projection}}.weight")
        )
    return rules


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
    if arguments.critic:
        same_as = "embed.weight" if arguments.tied_in_files else None
        rules += [Rename("score.weight", "head.weight", init_if_missing=True), Drop("lm_head.weight", same_as=same_as)]
    elif arguments.tied:
        rules.append(Tie("head.weight", to="embed.weight", hf="lm_head.weight"))
    else:
        rules.append(Rename("lm_head.weight", "head.weight"))
    return rules
