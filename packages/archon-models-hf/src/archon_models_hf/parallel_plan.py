"""What the modules of a model of transformers are to FSDP, tensor, context and pipeline parallelism."""

from __future__ import annotations

from archon_core.models.parallel_plan import HeadCounts, ParallelPlan, Role
from archon_models_hf.arguments import HfArguments
from archon_models_hf.attention import CORE_ATTENTION
from archon_models_hf.names import pattern_of
from archon_models_hf.traced_attention import common_heads


def parallel_plan(arguments: HfArguments) -> ParallelPlan:
    """The plan for a model of these arguments."""
    facts = arguments.facts
    query, key_value = common_heads(facts.attention)
    patterns = dict.fromkeys(pattern_of(owner) for owner in facts.owners)
    others = dict.fromkeys(".".join(p.split(".")[:2]) for p in patterns if p.startswith("other."))
    refusals = {"t": facts.tensor.refusal, "p": facts.no_pipeline}
    return ParallelPlan(
        roles={pattern: _role(pattern, arguments) for pattern in patterns},
        tensor_regions=facts.tensor.regions,
        key_value=facts.tensor.key_value,
        attention=tuple(
            dict.fromkeys(f"layers.{{layer}}.{layer.module}.{CORE_ATTENTION}" for layer in facts.attention)
        ),
        units=("embed", *others, "layers.{layer}", "norm", "head"),
        heads=HeadCounts(query=query, key_value=key_value),
        batched=True,
        refusals={letter: reason for letter, reason in refusals.items() if reason},
    )


def _role(pattern: str, arguments: HfArguments) -> Role:
    tensor = arguments.facts.tensor
    if pattern == "embed" or (pattern == "head" and not arguments.critic):
        return "vocabulary"
    if pattern in tensor.roles:
        return tensor.roles[pattern]
    # What is replicated inside of a region sees all of its tokens, and some heads or outputs of each.
    return "head_norm" if any(pattern.startswith(f"{region}.") for region in tensor.regions) else "sequence"
