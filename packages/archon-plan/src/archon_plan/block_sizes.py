"""The sizes of a block on one rank."""

from __future__ import annotations

from math import lcm
from typing import NamedTuple

from archon_core.models.anatomy import LatentAnatomy, LayerAnatomy
from archon_plan.masked_parts import MaskedPart, masked_parts
from archon_plan.setting import Setting
from archon_plan.shared_prompts import path_keys

FP32, INT64 = 4, 8
"""Bytes of a number."""

CHUNK = 64
"""``archon_engine.nn.delta_rule.chunks``'s tokens of a chunk."""


class ExpertSizes(NamedTuple):
    """Experts of a block on one rank. See ``archon_core.models.anatomy.ExpertsAnatomy``."""

    n_experts: int
    top_k: int
    intermediate: float
    shared_intermediate: int
    shared_gate: bool
    ep: int
    etp: int
    imbalance: float
    biases: bool = False
    clamped: bool = False


class BlockSizes(NamedTuple):
    """A block on one rank: everything that its memory depends on.

    Attributes:
        tokens: n.
        hidden: H.
        query_heads: of this rank; ``key_heads`` likewise, repeated ones counted.
        owned_key_heads: of the key projection on this rank, which can be a part of a head.
        key_dim: size of a query or key head.
        value_dim: size of a value head.
        head_norms: whether query and key heads are normalised.
        rotated_dim: number of elements of a query or key head that are rotated.
        latent: low-rank vectors that heads are made of; ``None`` without.
        intermediate: width of the dense feed-forward block on this rank; 0 without one.
        gated: whether it has a gate.
        experts: ``None`` for a dense block.
        value_bytes: bytes of an activation.
        tensor_ranks: t.
        head_ranks: context ranks that exchange heads.
        key_ranks: context ranks that gather keys and values.
        compiled: whether elementwise operations are fused.
        on_cpu: whether CPU kernels run.
        output_gate: whether queries have gates beside them, for the outputs of their heads.
        filter_length: tokens that the convolution of Gated DeltaNet reads; 0 for softmax attention.
        segments: sequences on this rank.
        chunk: tokens of a chunk of Gated DeltaNet, and ``chunks``, their number.
        sinks: whether query heads have sinks.
        path_keys: keys along the paths of a prefix tree over its tokens; 0 if sequences share nothing.
        masked: parts in which a CPU attends with masks.
        sends_queries: whether context ranks exchange queries apart from keys and values.
    """

    tokens: int
    hidden: int
    query_heads: float
    key_heads: float
    owned_key_heads: float
    key_dim: int
    value_dim: int
    head_norms: bool
    rotated_dim: int
    latent: LatentAnatomy | None
    intermediate: float
    gated: bool
    experts: ExpertSizes | None
    value_bytes: int
    tensor_ranks: int
    head_ranks: int
    key_ranks: int
    compiled: bool
    on_cpu: bool
    output_gate: bool = False
    filter_length: int = 0
    segments: float = 1
    chunk: int = 0
    chunks: float = 0
    sinks: bool = False
    path_keys: float = 0.0
    masked: tuple[MaskedPart, ...] = ()
    sends_queries: bool = True

    @property
    def context_ranks(self) -> int:
        """c, which pass on states of recurrent layers."""
        return self.head_ranks * self.key_ranks

    @property
    def region_tokens(self) -> int:
        """T, tokens inside a tensor region."""
        return self.tokens * self.tensor_ranks

    @property
    def mask_elements(self) -> float:
        """Elements of a CPU's masks. Ranks that gather keys have masks for their own queries."""
        return sum(part.pairs for part in self.masked) / self.key_ranks

    @property
    def input_bytes(self) -> float:
        """Bytes of the hidden states between regions."""
        return float(self.tokens * self.hidden * self.value_bytes)


def block_sizes(setting: Setting, layer: LayerAnatomy, imbalance: float, on_cpu: bool) -> BlockSizes:
    """A block of a rank of ``setting``.

    Args:
        layer: the block in the whole model.
        imbalance: rows of the busiest rank of experts over the mean.
        on_cpu: whether CPU kernels run.
    """
    dims, attention, experts = setting.dims, layer.attention, layer.experts
    owned = attention.heads.key_value / dims.tp
    read = owned if attention.heads.key_value % dims.tp == 0 else lcm(attention.heads.key_value, dims.tp) / dims.tp
    sizes = None
    if experts is not None:
        sizes = ExpertSizes(
            experts.n_experts,
            experts.top_k,
            experts.intermediate_size / dims.etp,
            experts.shared_intermediate_size,
            experts.shared_gate,
            dims.ep,
            dims.etp,
            imbalance,
            experts.biases,
            experts.clamped,
        )
    tokens = setting.local_tokens * dims.tp
    length = min(setting.tokens.sequence, tokens)
    segments, chunk = tokens / length, min(CHUNK, length)
    return BlockSizes(
        tokens=setting.local_tokens,
        hidden=setting.anatomy.hidden_size,
        query_heads=attention.heads.query / dims.tp,
        key_heads=read,
        owned_key_heads=owned,
        key_dim=attention.head_dim,
        value_dim=attention.value_dim,
        head_norms=attention.head_norms,
        rotated_dim=attention.head_dim if attention.rotated_dim is None else attention.rotated_dim,
        latent=attention.latent,
        intermediate=layer.intermediate_size / dims.tp,
        gated=layer.gated,
        experts=sizes,
        value_bytes=setting.types.compute,
        tensor_ranks=dims.tp,
        head_ranks=setting.context.heads,
        key_ranks=setting.context.groups,
        compiled=setting.compiles,
        on_cpu=on_cpu,
        output_gate=attention.output_gate,
        filter_length=attention.delta.filter_length if attention.delta else 0,
        segments=segments,
        chunk=chunk,
        chunks=segments * -(-length // chunk),
        sinks=attention.sinks,
        path_keys=path_keys(setting.tokens),
        masked=masked_parts(attention, setting.tokens) if on_cpu else (),
        sends_queries=attention.sends_queries,
    )
