"""The sizes of a model that a layout must divide, read from its anatomy."""

from __future__ import annotations

from archon_core.contracts.decisions import Decision
from archon_core.layout import ParallelDims
from archon_core.layout.model_sizes import ShardedExtents
from archon_core.models.anatomy import ModelAnatomy
from archon_engine.options import context_style
from archon_engine.options.archon import ArchonEngineConfig
from archon_engine.options.context_style import ContextSizes, padded_multiple, split_context

_KEY_VALUE = ("k_proj", "v_proj")
"""Projections to key and value heads. Where t does not divide them, tensor ranks exchange their outputs."""


def sharded_extents(anatomy: ModelAnatomy) -> ShardedExtents:
    """The extents that tensor ranks share, as the engine reads them from a module
    (``archon_engine.parallel.plan_checks.sharded_extents``)."""
    equal: dict[str, int] = {}
    unequal: dict[str, int] = {}
    for layer in anatomy.kinds:
        if layer.attention.delta is None:
            equal["attention heads"] = layer.attention.heads.query
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
    return ShardedExtents(equal, unequal)


def context_sizes(anatomy: ModelAnatomy, dims: ParallelDims, ranks_per_node: int | None = None) -> ContextSizes:
    """The sizes that decide how context ranks share attention, as the engine takes them from a module and the machines
    of a run (``archon_engine.assembly.context``)."""
    per_node = ranks_per_node if ranks_per_node and dims.world_size > ranks_per_node else None
    attentions = (layer.attention for layer in anatomy.kinds)
    queries = max((each.heads.query for each in attentions if each.delta is None), default=0)
    return ContextSizes(dims.cp, dims.tp, queries, per_node)


def is_recurrent(anatomy: ModelAnatomy) -> bool:
    """Whether the model has recurrent layers, for which context ranks hold parts of a pack in its order."""
    return any(layer.attention.delta is not None for layer in anatomy.kinds)


def token_multiple(anatomy: ModelAnatomy, dims: ParallelDims, style: str, ranks_per_node: int | None = None) -> int:
    """The length of a micro-batch is a multiple of this."""
    sizes = context_sizes(anatomy, dims, ranks_per_node)
    split = split_context(style, sizes, option="archon.cp_style")
    return padded_multiple(sizes, split, in_order=is_recurrent(anatomy))


def context_decisions(
    anatomy: ModelAnatomy,
    dims: ParallelDims,
    config: ArchonEngineConfig,
    ranks_per_node: int | None = None,
    *,
    role: str,
) -> list[Decision]:
    """The decisions about context parallelism and the padding that a run takes once it knows the model
    (``archon_engine.assembly.context``).

    Raises:
        ConfigError: the style does not fit the number of heads.
    """
    sizes, style = context_sizes(anatomy, dims, ranks_per_node), config.archon.cp_style
    split = split_context(style, sizes, option=f"{role}.archon.cp_style")
    return context_style.context_decisions(
        style, config.batch_align_to, sizes, split, in_order=is_recurrent(anatomy), role=role
    )


def expert_extents(anatomy: ModelAnatomy) -> tuple[int, int]:
    """Numbers that ep and etp must divide: experts, and the width inside one; (0, 0) for a model without experts."""
    for layer in anatomy.kinds:
        if layer.experts is not None:
            return layer.experts.n_experts, layer.experts.intermediate_size
    return 0, 0
