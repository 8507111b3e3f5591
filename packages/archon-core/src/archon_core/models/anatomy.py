"""The anatomy of a model: the shapes of its weights and the sizes of its layers, as plain numbers. Imports no torch.

Planning needs no module: a ``ModelSpec`` with an ``anatomy`` says what its module would contain. Names and shapes are
those of the module's parameters, not of a checkpoint.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from math import prod

from archon_core.models.parallel_plan import HeadCounts, Role


@dataclass(frozen=True)
class WeightShape:
    """One parameter of the whole model.

    Attributes:
        name: the parameter's name in the module.
        shape: its whole shape, in all parts of all ranks together.
        role: the role of the module that owns it, in the parallel plan.
        tensor_dim: the dim that tensor ranks shard, or, for stacked experts, that expert tensor ranks shard; ``None``
            for a replicated parameter. Expert ranks shard dim 0 of stacked experts.
    """

    name: str
    shape: tuple[int, ...]
    role: Role
    tensor_dim: int | None = None

    @property
    def size(self) -> int:
        """Number of elements."""
        return prod(self.shape)


@dataclass(frozen=True)
class LatentAnatomy:
    """Low-rank vectors that heads are made of, in multi-head latent attention (``archon_engine.nn.latent_attention``).

    Attributes:
        query_rank: size of the vector that queries are made of; 0 without one.
        key_value_rank: size of the vector that keys and values are made of. A cache keeps it and the rotated part of
            keys, which all heads share.
    """

    query_rank: int
    key_value_rank: int


@dataclass(frozen=True)
class DeltaNetAnatomy:
    """Gated DeltaNet in place of softmax attention (``archon_engine.nn.gated_delta_net``): per head, its memory is a
    matrix of the size of a key by the size of a value.

    Attributes:
        filter_length: tokens that the convolution before the memory reads.
    """

    filter_length: int


@dataclass(frozen=True)
class AttentionAnatomy:
    """The token mixer of one layer: softmax attention or Gated DeltaNet.

    Attributes:
        heads: numbers of query and key heads. In Gated DeltaNet, which has as many queries as keys, the first is the
            number of value heads.
        head_dim: size of a query or key head.
        value_dim: size of a value head.
        window: number of keys that a token sees, including its own; ``None`` for all before it.
        head_norms: whether query and key heads are normalised.
        rotated_dim: number of elements of a head that are rotated; ``None`` for all.
        latent: low-rank vectors that heads are made of; ``None`` if heads are projections of hidden states.
        output_gate: whether the query projection makes a gate beside every query, which multiplies the head's output.
        delta: Gated DeltaNet; ``None`` for softmax attention.
        sinks: whether each query head has a sink, a key without a value that every token sees.
        sends_queries: whether queries are handed over before keys and values are projected
            (``archon_engine.nn.attention.PackedAttention.send_queries``). Context ranks that exchange heads then have
            an exchange for queries and one for keys and values, otherwise a single one for all.
    """

    heads: HeadCounts
    head_dim: int
    value_dim: int
    window: int | None = None
    head_norms: bool = False
    rotated_dim: int | None = None
    latent: LatentAnatomy | None = None
    output_gate: bool = False
    delta: DeltaNetAnatomy | None = None
    sinks: bool = False
    sends_queries: bool = True


@dataclass(frozen=True)
class ExpertsAnatomy:
    """A mixture of experts.

    Attributes:
        n_experts: number of routed experts.
        top_k: experts per token.
        intermediate_size: width inside one routed expert.
        shared_intermediate_size: width inside the shared expert, which sees every token; 0 without one.
        shared_gate: whether a gate, one number per token, multiplies the shared expert's output.
        biases: whether the projections of routed experts have biases.
        clamped: whether a clamped gate (``archon_core.contracts.moe.ClampedGate``) replaces their activation.
    """

    n_experts: int
    top_k: int
    intermediate_size: int
    shared_intermediate_size: int = 0
    shared_gate: bool = False
    biases: bool = False
    clamped: bool = False


@dataclass(frozen=True)
class LayerAnatomy:
    """One repeated block. Equal layers have equal anatomies but for the names of their weights.

    Attributes:
        weights: its parameters; names are relative to the layer (``attention.q_proj.weight``).
        attention: its core attention.
        intermediate_size: width inside its dense feed-forward block; 0 without one.
        gated: whether the feed-forward block has a gate beside its up-projection.
        experts: its mixture of experts; ``None`` for a dense layer.
        norms: normalisations of the residual stream.
    """

    weights: tuple[WeightShape, ...]
    attention: AttentionAnatomy
    intermediate_size: int = 0
    gated: bool = True
    experts: ExpertsAnatomy | None = None
    norms: int = 2

    @property
    def size(self) -> int:
        """Number of parameters."""
        return sum(weight.size for weight in self.weights)


@dataclass(frozen=True)
class ModelAnatomy:
    """A decoder.

    Attributes:
        hidden_size: width of the residual stream.
        vocab_size: rows of the embedding.
        embed: parameters before the layers.
        layers: its blocks in order.
        last: parameters after the layers: final norm and head. With ``tied`` it leaves out the head's weight, which is
            the embedding's.
        tied: whether the head uses the embedding's weight.
        critic: whether the head gives one value per token.
    """

    hidden_size: int
    vocab_size: int
    embed: tuple[WeightShape, ...]
    layers: tuple[LayerAnatomy, ...]
    last: tuple[WeightShape, ...]
    tied: bool = False
    critic: bool = False

    @property
    def attention(self) -> AttentionAnatomy:
        """That of the first layer with softmax attention, or of the first layer if none has any."""
        mixers = [layer.attention for layer in self.layers]
        return next((mixer for mixer in mixers if mixer.delta is None), mixers[0])

    @property
    def has_experts(self) -> bool:
        """Whether any layer has experts."""
        return any(layer.experts is not None for layer in self.layers)

    @cached_property
    def kinds(self) -> tuple[LayerAnatomy, ...]:
        """The different layers, in the order of their first one."""
        return tuple(self._kinds)

    @cached_property
    def kind_of(self) -> tuple[int, ...]:
        """For each layer, the index of its kind in ``kinds``."""
        return tuple(self._kinds[layer] for layer in self.layers)

    @cached_property
    def _kinds(self) -> dict[LayerAnatomy, int]:
        return {layer: index for index, layer in enumerate(dict.fromkeys(self.layers))}

    @property
    def n_parameters(self) -> int:
        """Number of parameters of the whole model; a tied one counts once."""
        ends = sum(weight.size for weight in (*self.embed, *self.last))
        return ends + sum(layer.size for layer in self.layers)
