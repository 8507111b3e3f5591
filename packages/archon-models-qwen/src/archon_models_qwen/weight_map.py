"""Hugging Face's names of Qwen weights and ours."""

from __future__ import annotations

from archon_core.models.weight_map import WeightMap
from archon_core.models.weight_rules import Drop, Rename, Split, Stack, Tie
from archon_models_qwen.arguments import QwenArguments
from archon_models_qwen.moe_arguments import QwenMoEArguments

HF, OURS = "model.layers.{layer}", "layers.{layer}"

_MLP = Rename(f"{HF}.mlp.{{projection}}.weight", f"{OURS}.mlp.{{projection}}.weight")

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


def weight_map(arguments: QwenArguments) -> WeightMap:
    """The rules for a dense model of these arguments."""
    return WeightMap((*_outside_feed_forward(arguments), _MLP))


def moe_weight_map(arguments: QwenMoEArguments) -> WeightMap:
    """The rules for a model with experts: saved one by one, read from the fused form too."""
    shared = [*_outside_feed_forward(arguments), Rename(f"{HF}.mlp.gate.weight", f"{OURS}.moe.router.weight")]
    if not all(arguments.sparse):
        shared.append(_MLP)
    return WeightMap((*shared, *_ONE_BY_ONE), alternatives=(WeightMap((*shared, *_FUSED)),))


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
    if arguments.critic:
        same_as = "embed.weight" if arguments.tied_in_files else None
        rules += [Rename("score.weight", "head.weight", init_if_missing=True), Drop("lm_head.weight", same_as=same_as)]
    elif arguments.tied:
        rules.append(Tie("head.weight", to="embed.weight", hf="lm_head.weight"))
    else:
        rules.append(Rename("lm_head.weight", "head.weight"))
    return rules
