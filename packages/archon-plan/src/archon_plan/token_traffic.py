"""Traffic of tokens: tensor ranks gather and scatter sequence shards, context ranks exchange heads or gather keys.

Each function adds one kind of layer for all its passes in a step. Selective checkpointing keeps the results of
collectives; a layer that is recomputed as a whole repeats those of its forward pass.

Legend: T tokens of a micro-batch, t tensor ranks, c context ranks, H hidden size.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

from archon_core.models.anatomy import AttentionAnatomy, LayerAnatomy, WeightShape
from archon_core.models.box import chunk_of
from archon_plan.ledger import Group, Ledger
from archon_plan.setting import Setting


@dataclass(frozen=True)
class Passes:
    """How often the passes of equal layers run in one step.

    Attributes:
        forward: forward passes.
        backward: backward passes.
        again: forward passes that backward repeats.
    """

    forward: int
    backward: int
    again: int = 0


class TokenSizes:
    """Sizes of one micro-batch, in tokens and bytes per number.

    Attributes:
        local: tokens of one rank between tensor regions, T / (t c).
        context: tokens of one context rank, T / c.
        whole: T, padded to a multiple of t c.
        compute: bytes of an activation.
        exact: bytes of a number that is kept in at least fp32, such as a log-probability.
    """

    def __init__(self, setting: Setting) -> None:
        self.local = setting.local_tokens
        self.context = self.local * setting.dims.tp
        self.whole = self.context * setting.dims.cp
        self.compute = setting.types.compute
        self.exact = max(4, setting.types.compute)


def add_layer(ledger: Ledger, setting: Setting, layer: LayerAnatomy, passes: Passes) -> None:
    """Add the tensor regions and core attention of a layer."""
    sizes = TokenSizes(setting)
    tensor = Group.of("tp", setting.dims)
    hidden = sizes.context * setting.anatomy.hidden_size * sizes.compute
    regions = 2 if layer.intermediate_size else 1
    ledger.add(tensor, "all_gather", "sequence shards", hidden, regions * (passes.forward + passes.backward))
    ledger.add(tensor, "reduce_scatter", "sequence shards", hidden, regions * (passes.forward + passes.backward))
    ledger.add(tensor, "all_gather", "sequence shards, again", hidden, regions * passes.again)
    scattered = regions if _needs_last_scatter(layer, setting) else regions - 1
    ledger.add(tensor, "reduce_scatter", "sequence shards, again", hidden, scattered * passes.again)
    _add_heads(ledger, setting, layer, sizes, passes)


def _needs_last_scatter(layer: LayerAnatomy, setting: Setting) -> bool:
    """Whether a recomputed layer repeats the scatter of its last region.

    Torch stops recomputing once everything that backward needs is there, and the sum with the residual stream needs
    nothing. A compiled layer cannot stop, and a norm behind the region needs its input.
    """
    has_norm = any("post_feedforward" in weight.name for weight in layer.weights)
    return setting.compiles or has_norm or layer.experts is not None


def _add_heads(ledger: Ledger, setting: Setting, layer: LayerAnatomy, sizes: TokenSizes, passes: Passes) -> None:
    dims, attention = setting.dims, layer.attention
    runs = passes.forward + passes.backward + passes.again
    tensor, split = Group.of("tp", dims), setting.context
    if attention.delta is not None:
        _add_states(ledger, attention, sizes, Group.of("cp", dims), dims.tp, passes)
        return
    norms = sum(map(_is_projection_norm, layer.weights))
    squares = tensor.size * sizes.context * sizes.exact
    ledger.add(tensor, "all_gather", "norms over heads", squares, norms * (passes.forward + passes.again))
    ledger.add(tensor, "reduce_scatter", "norms over heads", squares, norms * passes.backward)
    if _needs_whole_projections(layer):
        for features in _projected(attention):
            whole = sizes.context * features * sizes.compute
            ledger.add(tensor, "all_gather", "whole projections", whole, passes.forward + passes.again)
            ledger.add(tensor, "reduce_scatter", "whole projections", whole, passes.backward)
    elif attention.heads.key_value % dims.tp:
        forward = passes.forward + passes.again
        most = max(forward * out + passes.backward * back for out, back in key_heads_sent(attention, dims.tp))
        ledger.add_sent(tensor, "all_to_all", "key heads", sizes.context * sizes.compute * most, 2 * runs)
    row = sizes.context * sizes.compute
    exchanging = Group("cp" if split.groups == 1 else "cp_heads", split.heads)
    for numbers in heads_exchanged(attention, dims.tp, split.heads):
        ledger.add(exchanging, "all_to_all", "heads", row * numbers, runs)
    gathering = Group("cp" if split.heads == 1 else "cp_keys", split.groups)
    gathered = sizes.whole * sizes.compute * keys_gathered(attention, dims.tp, split.heads)
    ledger.add(gathering, "all_gather", "keys and values", gathered, passes.forward + passes.again)
    ledger.add(gathering, "reduce_scatter", "keys and values", gathered, passes.backward)


def _add_states(
    ledger: Ledger, attention: AttentionAnatomy, sizes: TokenSizes, context: Group, tp: int, passes: Passes
) -> None:
    """Context ranks pass on the last tokens before a filter, and the map of a sequence's state, in fp32."""
    assert attention.delta is not None, "attention exchanges heads"
    heads, key, value = attention.heads, attention.head_dim, attention.value_dim
    features = (2 * heads.key_value * key + heads.query * value) // tp
    tokens = min(attention.delta.filter_length - 1, sizes.context)
    for purpose, own in (
        ("tokens before filters", tokens * features * sizes.compute),
        ("states", heads.query // tp * key * (key + value) * sizes.exact),
    ):
        ledger.add(context, "all_gather", purpose, context.size * own, passes.forward + passes.again)
        ledger.add(context, "reduce_scatter", purpose, context.size * own, passes.backward)


def _needs_whole_projections(layer: LayerAnatomy) -> bool:
    """Whether tensor ranks gather queries, keys and values, because a replicated norm looks at all of their heads, as
    in transformers' modules of OLMo 2. Each rank then takes its own heads."""
    return any(weight.role == "head_norm" and weight.shape[0] > layer.attention.head_dim for weight in layer.weights)


def _projected(attention: AttentionAnatomy) -> tuple[int, int, int]:
    """Features of the queries, keys and values of a token."""
    heads = attention.heads
    return heads.query * attention.head_dim, heads.key_value * attention.head_dim, heads.key_value * attention.value_dim


def _is_projection_norm(weight: WeightShape) -> bool:
    """Whether it is the weight of a norm over all heads of a projection, for which tensor ranks sum squares."""
    return weight.role == "column" and len(weight.shape) == 1 and weight.name.endswith("norm.weight")


def heads_exchanged(attention: AttentionAnatomy, tp: int, cp: int) -> tuple[int, ...]:
    """Numbers per token of one tensor rank in each exchange of context ranks: of queries, of keys with values, and of
    the results of attention. Queries, keys and values share an exchange if queries are not sent first.

    Key heads are replicated where tensor or context ranks do not divide them, by the least number of copies that makes
    them divide (``archon_engine.nn.ulysses``, ``archon_engine.nn.key_heads``).
    """
    queries = attention.heads.query // tp
    keys = math.lcm(math.lcm(attention.heads.key_value, tp) // tp, cp)
    size = attention.head_dim
    inputs = (queries * size, keys * (size + attention.value_dim))
    return *(inputs if attention.sends_queries else (sum(inputs),)), queries * attention.value_dim


def keys_gathered(attention: AttentionAnatomy, tp: int, heads: int) -> int:
    """Numbers per token of the pack that one rank has of keys and values after it gathered them
    (``archon_engine.nn.key_gathering``), where ``heads`` context ranks exchanged heads before."""
    keys = math.lcm(math.lcm(attention.heads.key_value, tp) // tp, heads) // heads
    return keys * (attention.head_dim + attention.value_dim)


@lru_cache(maxsize=4096)
def key_heads_sent(attention: AttentionAnatomy, tp: int) -> tuple[tuple[int, int], ...]:
    """Numbers per token that each tensor rank sends, in the forward and in the backward pass, so that all ranks have
    the key and value heads of their queries."""
    n_heads = attention.heads.key_value
    local = math.lcm(n_heads, tp) // tp
    copies = math.lcm(n_heads, tp) // n_heads
    sent = []
    for rank in range(tp):
        out = back = 0
        for size in (attention.head_dim, attention.value_dim):
            for other in range(tp):
                if other != rank:
                    out += _common(_owned(n_heads * size, tp, rank), _read(other, local, copies, size))
                    back += _common(_owned(n_heads * size, tp, other), _read(rank, local, copies, size))
        sent.append((out, back))
    return tuple(sent)


def _owned(outputs: int, tp: int, rank: int) -> range:
    return chunk_of(outputs, tp, rank)


def _read(rank: int, local: int, copies: int, size: int) -> range:
    """The outputs of the projection that the queries of ``rank`` read."""
    first, last = rank * local // copies, ((rank + 1) * local - 1) // copies
    return range(first * size, (last + 1) * size)


def _common(a: range, b: range) -> int:
    return max(0, min(a.stop, b.stop) - max(a.start, b.start))


def add_embedding(ledger: Ledger, setting: Setting, passes: Passes) -> None:
    """Add the scatter of embeddings, whose rows are sharded over tensor ranks."""
    if any(weight.role == "vocabulary" for weight in setting.anatomy.embed):
        sizes = TokenSizes(setting)
        hidden = sizes.context * setting.anatomy.hidden_size * sizes.compute
        tensor = Group.of("tp", setting.dims)
        ledger.add(tensor, "reduce_scatter", "sequence shards", hidden, passes.forward)
        ledger.add(tensor, "all_gather", "sequence shards", hidden, passes.backward)


def add_head(ledger: Ledger, setting: Setting, passes: Passes) -> None:
    """Add the exchanges of the head: hidden states, the normalisers of each rank's vocabulary rows, and outputs."""
    sizes, anatomy = TokenSizes(setting), setting.anatomy
    tensor, context = Group.of("tp", setting.dims), Group.of("cp", setting.dims)
    outputs = 2 if setting.entropy and not anatomy.critic else 1
    if anatomy.critic:
        values = sizes.context * sizes.exact
        ledger.add(tensor, "all_gather", "values", values, passes.forward)
    else:
        hidden = sizes.context * anatomy.hidden_size * sizes.compute
        ledger.add(tensor, "all_gather", "sequence shards", hidden, passes.forward)
        ledger.add(tensor, "reduce_scatter", "sequence shards", hidden, passes.backward)
        # Of each rank's rows: log of the normaliser, logit of the target, and with entropies a third number.
        statistics = tensor.size * (1 + outputs) * sizes.context * sizes.exact
        ledger.add(tensor, "all_gather", "vocabulary", statistics, passes.forward)
    ledger.add(context, "all_gather", "outputs", sizes.whole * sizes.exact, outputs * passes.forward)
