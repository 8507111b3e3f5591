"""Hugging Face's names of Qwen3.5 weights and ours.

Published checkpoints also hold a vision encoder, which changes the prefix of the language model's names, and layers for
multi-token prediction.
"""

from __future__ import annotations

from archon_core.models.expert_rules import experts_one_by_one, fused_experts
from archon_core.models.head_rules import head_rules
from archon_core.models.weight_map import WeightMap
from archon_core.models.weight_rules import Drop, Rename, Split, Stack, Tie
from archon_models_qwen.hybrid_arguments import Qwen35Arguments, Qwen35MoEArguments

TEXT, COMPOSITE = "model", "model.language_model"
"""Prefixes of the language model's names: in text-only checkpoints, and beside a vision encoder."""

OURS = "layers.{layer}"

Rules = list[Rename | Split | Stack | Tie | Drop]

_UNUSED = (
    Drop("model.visual.{rest...}", reason="the language model alone is trained"),
    Drop("mtp.{rest...}", reason="multi-token prediction is not trained"),
)


def weight_map(arguments: Qwen35Arguments) -> WeightMap:
    """The rules for a dense model."""
    forms = [
        (*_outside_feed_forward(arguments, prefix), *_UNUSED, Rename(*_names(prefix, "mlp.{part}.weight")))
        for prefix in (TEXT, COMPOSITE)
    ]
    return WeightMap(forms[0], alternatives=(WeightMap(forms[1]),))


def moe_weight_map(arguments: Qwen35MoEArguments) -> WeightMap:
    """The rules for a model with experts: saved one by one, as transformers does; read from the fused form of published
    checkpoints too."""
    forms = [
        (
            *_outside_feed_forward(arguments, prefix),
            *_UNUSED,
            *_router_and_shared(prefix),
            *experts(f"{prefix}.layers.{{layer}}", OURS),
        )
        for prefix in (TEXT, COMPOSITE)
        for experts in (experts_one_by_one, fused_experts)
    ]
    return WeightMap(forms[0], alternatives=tuple(WeightMap(form) for form in forms[1:]))


def _outside_feed_forward(arguments: Qwen35Arguments, prefix: str) -> Rules:
    rules: Rules = [
        Rename(f"{prefix}.embed_tokens.weight", "embed.weight"),
        Rename(*_names(prefix, "input_layernorm.weight", "attention_norm.weight")),
        Rename(*_names(prefix, "post_attention_layernorm.weight", "mlp_norm.weight")),
        Rename(f"{prefix}.norm.weight", "norm.weight"),
    ]
    if not all(arguments.linear):
        rules.append(Rename(*_names(prefix, "self_attn.{part}.weight", "attention.{part}.weight")))
        if arguments.qkv_bias:
            rules.append(Rename(*_names(prefix, "self_attn.{part}.bias", "attention.{part}.bias")))
    if any(arguments.linear):
        rules += _delta_net(prefix)
    return rules + head_rules(tied=arguments.tied, critic=arguments.critic, tied_in_files=arguments.tied_in_files)


def _delta_net(prefix: str) -> Rules:
    hf, ours = f"{prefix}.layers.{{layer}}.linear_attn", f"{OURS}.delta"
    qkv = ("query", "key", "value")
    renamed = {
        "in_proj_z.weight": "output_gate_proj.weight",
        "in_proj_b.weight": "beta_proj.weight",
        "in_proj_a.weight": "decay_proj.weight",
        "A_log": "decay.weight",
        "dt_bias": "decay.bias",
        "norm.weight": "norm.weight",
        "out_proj.weight": "out_proj.weight",
    }
    return [
        # Apart in the module, so that tensor ranks cut each of the three by heads.
        Split(f"{hf}.in_proj_qkv.weight", tuple(f"{ours}.{part}_proj.weight" for part in qkv)),
        Split(f"{hf}.conv1d.weight", tuple(f"{ours}.{part}_filters.weight" for part in qkv)),
        *(Rename(f"{hf}.{theirs}", f"{ours}.{own}") for theirs, own in renamed.items()),
    ]


def _router_and_shared(prefix: str) -> Rules:
    return [
        Rename(*_names(prefix, "mlp.gate.weight", "moe.router.weight")),
        Rename(*_names(prefix, "mlp.shared_expert.{part}.weight", "moe.shared.{part}.weight")),
        Rename(*_names(prefix, "mlp.shared_expert_gate.weight", "moe.shared_gate.weight")),
    ]


def _names(prefix: str, hf: str, ours: str | None = None) -> tuple[str, str]:
    """Names within a layer; ours are the same unless given."""
    return f"{prefix}.layers.{{layer}}.{hf}", f"{OURS}.{ours or hf}"
