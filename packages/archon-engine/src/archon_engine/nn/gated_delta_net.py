"""Gated DeltaNet (Yang, Kautz and Hatamizadeh 2024, arXiv:2412.06464) as Qwen3-Next and Qwen3.5 use it: a token mixer
whose memory is a matrix per head instead of keys and values.

``DeltaNetCore`` holds no weights, for the same reasons as ``PackedAttention``: only it reads other tokens, so it alone
knows caches and context ranks.

Legend: T tokens, S segments, Hk key heads, H value heads, K key and V value dimension, L filter length.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from archon_core.contracts.module import InitialValue
from archon_core.contracts.packed import ContextRanks, PackedSequences
from archon_engine.nn.delta_rule import fla, rule
from archon_engine.nn.delta_rule.convolution import Filters, causal_convolution
from archon_engine.nn.delta_rule.segments import Segments
from archon_engine.nn.linear import Linear
from archon_engine.nn.norm import RMSNorm
from archon_engine.nn.swiglu import activation
from archon_engine.nn.tensor_parallel import local_weight


@dataclass(frozen=True)
class DeltaNetSettings:
    """The settings of a model's Gated DeltaNet layers, equal in all of them.

    Attributes:
        hidden_size: width of the residual stream.
        n_key_heads: Hk; t divides it.
        n_value_heads: H, a multiple of Hk. Value head i reads and writes with key head i // (H / Hk).
        key_dim: K.
        value_dim: V.
        filter_length: L, tokens that the convolution reads, the current one included.
        hidden_act: activation after the convolution, by its ``transformers`` name.
        norm_eps: added to the mean square of each head's output.
    """

    hidden_size: int
    n_key_heads: int
    n_value_heads: int
    key_dim: int
    value_dim: int
    filter_length: int
    hidden_act: str
    norm_eps: float


class GatedDeltaNet(nn.Module):
    """``out(norm(core(conv(q, k, v), decay, beta)) * silu(output_gate))``."""

    def __init__(self, settings: DeltaNetSettings, layer: int) -> None:
        super().__init__()
        s = settings
        keys, values = s.n_key_heads * s.key_dim, s.n_value_heads * s.value_dim
        self.settings = settings
        # In the order of transformers' module, which decides how weights are divided among files.
        self.decay = LogDecay(s.n_value_heads)
        self.query_filters = Filters(keys, s.filter_length)
        self.key_filters = Filters(keys, s.filter_length)
        self.value_filters = Filters(values, s.filter_length)
        self.norm = RMSNorm(s.value_dim, s.norm_eps)
        self.out_proj = Linear(values, s.hidden_size)
        self.query_proj = Linear(s.hidden_size, keys)
        self.key_proj = Linear(s.hidden_size, keys)
        self.value_proj = Linear(s.hidden_size, values)
        self.output_gate_proj = Linear(s.hidden_size, values)
        self.beta_proj = Linear(s.hidden_size, s.n_value_heads)
        self.decay_proj = Linear(s.hidden_size, s.n_value_heads)
        self.core = DeltaNetCore(str(layer), settings)

    def forward(self, x: Tensor, packed: PackedSequences) -> Tensor:
        """[T, hidden] to [T, hidden]."""
        # Queries, keys and values side by side: one convolution, one exchange between context ranks, one cache entry.
        qkv = torch.cat((self.query_proj(x), self.key_proj(x), self.value_proj(x)), dim=-1)
        filters = torch.cat((self.query_filters(), self.key_filters(), self.value_filters()))
        out = self.core(qkv, filters, self.decay(self.decay_proj(x)), self.beta_proj(x).sigmoid(), packed)
        return self.out_proj(self._gated(self.norm(out), self.output_gate_proj(x).view_as(out)).flatten(-2))

    def _gated(self, out: Tensor, gate: Tensor) -> Tensor:
        # Rounded once, after a product in at least fp32, as in transformers.
        wide = torch.promote_types(out.dtype, torch.float32)
        return (out.to(wide) * functional.silu(gate.to(wide))).to(out.dtype)


class LogDecay(nn.Module):
    """``-exp(weight) * softplus(x + bias)``, with role ``column``: a tensor rank has the elements of its heads.

    Attributes:
        bias: [H] (``dt_bias`` in files).
        weight: [H], logarithm of each head's rate (``A_log`` in files).
    """

    initial_values: ClassVar[Mapping[str, InitialValue]] = {"bias": "ones", "weight": "log_uniform"}

    def __init__(self, n_heads: int) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.empty(n_heads))
        self.weight = nn.Parameter(torch.empty(n_heads))

    def forward(self, x: Tensor) -> Tensor:
        """Logarithms of the decay of each token and head, [T, H], in at least fp32."""
        wide = torch.promote_types(x.dtype, torch.float32)
        rate = local_weight(self.weight).to(wide).exp()
        return -rate * functional.softplus(x.to(wide) + local_weight(self.bias).to(wide))

    def extra_repr(self) -> str:
        return f"{self.weight.shape[0]}"


class DeltaNetCore(nn.Module):
    """Convolution and delta rule over packed sequences.

    Attributes:
        layer: the layer's id, under which a cache keeps its states.
        settings: sizes.
    """

    accepts_sequence_shards = True

    def __init__(self, layer: str, settings: DeltaNetSettings) -> None:
        super().__init__()
        self.layer = layer
        self.settings = settings
        self.activation = activation(settings.hidden_act)

    def forward(self, qkv: Tensor, filters: Tensor, log_decay: Tensor, beta: Tensor, packed: PackedSequences) -> Tensor:
        """The heads' outputs [T, H, V] for this rank's heads.

        With ``packed.context``, arguments and result contain this rank's tokens only.

        Args:
            qkv: [T, 2 Hk K + H V], before the convolution.
            filters: [2 Hk K + H V, L].
            log_decay: [T, H].
            beta: [T, H].
            packed: the pack.
        """
        s, segments, (history, state) = self.settings, Segments.of(packed), self._cached(packed)
        if packed.context is not None:
            history = history_from_ranks(qkv, filters.shape[1] - 1, segments, packed.context)
        convolved, last = causal_convolution(qkv, filters, segments.lengths, history)
        n_heads = log_decay.shape[1]
        keys = n_heads * s.n_key_heads // s.n_value_heads * s.key_dim
        q, k, v = self.activation(convolved).split((keys, keys, n_heads * s.value_dim), dim=-1)
        q, k, v = (x.unflatten(-1, (-1, size)) for x, size in ((q, s.key_dim), (k, s.key_dim), (v, s.value_dim)))
        if packed.context is not None:
            state = state_from_ranks(k, v, log_decay, beta, segments, packed.context)
        apply = fla.gated_delta_rule if fla.takes(q) else rule.gated_delta_rule
        out, state = apply(q, k, v, log_decay, beta, segments.lengths, state)
        if packed.cache is not None:
            packed.cache.keep_states(self.layer, (last, state))
        return out

    def _cached(self, packed: PackedSequences) -> tuple[Tensor | None, Tensor | None]:
        """The last L - 1 tokens before each sequence, and the state; ``None`` at the start of sequences."""
        if packed.cache is None:
            return None, None
        assert packed.context is None, "a cache holds whole sequences"
        history, state = packed.cache.states(self.layer) or (None, None)
        return history, state

    def extra_repr(self) -> str:
        return f"layer={self.layer}, {self.settings}"


def history_from_ranks(x: Tensor, n_before: int, segments: Segments, context: ContextRanks) -> Tensor:
    """The tokens before each segment, [S, n_before, F]: from earlier ranks for the first one, zeros for the others.

    Every rank exchanges and uses the result, whether its first segment goes on or not: backward is collective too.

    Args:
        x: [T, F].
        n_before: number of tokens that a convolution reads besides the current one.
        segments: of this rank.
        context: the ranks.
    """
    # A rank may hold fewer tokens than a filter reads; then its tail is all that it has.
    n_sent = min(n_before, len(x))
    tails = context.stack(x[len(x) - n_sent :]).flatten(0, 1)
    start = context.rank * n_sent
    mine = torch.cat((x.new_zeros(n_before, x.shape[1]), tails))[start : start + n_before]
    of_others = torch.arange(n_before, 0, -1, device=x.device) > segments.first_offset
    mine = mine.masked_fill(of_others[:, None], 0.0)
    return torch.cat((mine[None], x.new_zeros(len(segments.lengths) - 1, *mine.shape)))


def state_from_ranks(
    k: Tensor, v: Tensor, log_decay: Tensor, beta: Tensor, segments: Segments, context: ContextRanks
) -> Tensor:
    """The states before each segment, [S, H, K, V]: from earlier ranks for the first one, zeros for the others.

    Each rank's last segment maps the state before the rank to the one after it, ``S -> transition @ S + offset``. The
    ranks exchange these maps, and each applies those of the ranks before it in order. A rank in which a sequence begins
    has transition 0, so states do not pass from one sequence to the next.

    Args:
        k: [T, Hk, K].
        v: [T, H, V].
        log_decay: [T, H].
        beta: [T, H].
        segments: of this rank.
        context: the ranks.
    """
    n_last = segments.lengths[-1]
    transition, offset = rule.segment_map(k[-n_last:], v[-n_last:], log_decay[-n_last:], beta[-n_last:])
    # A product, not new zeros: every rank takes part in the backward pass of the exchange.
    transition = transition if segments.spans_all else transition * 0.0
    maps = context.stack(torch.cat((transition, offset), dim=-1))
    key_dim = k.shape[-1]
    # Zeros that depend on the maps, for rank 0, which applies none.
    state = maps[-1, ..., key_dim:] * 0.0
    for earlier in range(context.rank):
        state = maps[earlier, ..., :key_dim] @ state + maps[earlier, ..., key_dim:]
    state = state if segments.first_offset else state * 0.0
    return torch.cat((state[None], state.new_zeros(len(segments.lengths) - 1, *state.shape)))
