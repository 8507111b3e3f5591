"""Weight rules of feed-forward blocks with experts under the names that DeepSeek-V3, GLM-4.5 and Qwen3 share."""

from __future__ import annotations

from archon_core.models.weight_rules import Rename, Split, Stack

PROJECTIONS = ("gate_proj", "up_proj", "down_proj")


def experts_one_by_one(hf: str, ours: str) -> tuple[Stack, ...]:
    """Experts as transformers writes them to files.

    Args:
        hf: Hugging Face's name of a layer, such as ``model.layers.{layer}``.
        ours: our name of it.
    """
    return tuple(Stack(f"{hf}.mlp.experts.{{expert}}.{p}.weight", f"{ours}.moe.experts.{p}") for p in PROJECTIONS)


def fused_experts(hf: str, ours: str) -> tuple[Split, Rename]:
    """Experts as transformers 5 holds them in memory, and as some files store them. Arguments as above."""
    gate_and_up = (f"{ours}.moe.experts.gate_proj", f"{ours}.moe.experts.up_proj")
    return (
        Split(f"{hf}.mlp.experts.gate_up_proj", gate_and_up, dim=1),
        Rename(f"{hf}.mlp.experts.down_proj", f"{ours}.moe.experts.down_proj"),
    )


def beside_experts(hf: str, ours: str, *, has_dense: bool, has_shared: bool) -> tuple[Rename, ...]:
    """The router with its bias for choosing, the shared expert and dense blocks.

    Args:
        hf: as above.
        ours: as above.
        has_dense: whether some layers have no experts.
        has_shared: whether blocks have a shared expert.
    """
    router = f"{hf}.mlp.gate"
    rules = [
        Rename(f"{router}.weight", f"{ours}.moe.router.weight"),
        Rename(f"{router}.e_score_correction_bias", f"{ours}.moe.router.choice_bias", keeps_fp32=True),
    ]
    if has_dense:
        rules.append(Rename(f"{hf}.mlp.{{projection}}.weight", f"{ours}.mlp.{{projection}}.weight"))
    if has_shared:
        rules.append(
            Rename(f"{hf}.mlp.shared_experts.{{projection}}.weight", f"{ours}.moe.shared.{{projection}}.weight")
        )
    return tuple(rules)
