"""The sizes of a model that a layout must divide, read from its anatomy."""

from __future__ import annotations

from archon_core.layout.model_sizes import ShardedExtents
from archon_core.models.anatomy import ModelAnatomy

_KEY_VALUE = ("k_proj", "v_proj")
"""Projections to key and value heads. Where t does not divide them, tensor ranks exchange their outputs."""


def sharded_extents(anatomy: ModelAnatomy) -> ShardedExtents:
    """The extents that tensor and context ranks share, as the engine reads them from a module
    (``archon_engine.parallel.plan_checks.sharded_extents``)."""
    equal: dict[str, int] = {}
    unequal: dict[str, int] = {}
    queries = 0
    for layer in anatomy.kinds:
        if layer.attention.delta is None:
            queries = layer.attention.heads.query
            equal["attention heads"] = queries
        else:
            equal["key heads of Gated DeltaNet"] = layer.attention.heads.key_value
        for weight in layer.weights:
            if weight.tensor_dim is None or weight.role == "expert" or not weight.name.endswith(".weight"):
                continue
            module = weight.name.removesuffix(".weight")
            kind = unequal if module.endswith(_KEY_VALUE) else equal
            kind[f"{module} {'outputs' if weight.tensor_dim == 0 else 'inputs'}"] = weight.shape[weight.tensor_dim]
    for weight in (*anatomy.embed, *anatomy.last):
        if weight.role == "vocabulary":
            unequal["vocabulary"] = weight.shape[0]
    return ShardedExtents(equal, queries, unequal)


def expert_extents(anatomy: ModelAnatomy) -> tuple[int, int]:
    """Numbers that ep and etp must divide: experts, and the width inside one; (0, 0) for a model without experts."""
    for layer in anatomy.kinds:
        if layer.experts is not None:
            return layer.experts.n_experts, layer.experts.intermediate_size
    return 0, 0
