"""KV caches: packed for prompts, padded buffers for rows in decoding. Of recurrent layers they hold states instead.

A ``PromptCache`` collects keys, values and states during one prefill. The ``DecodeCache`` lives for a whole generation:
prompts are copied in once per sample, and every ``DecodeStep`` adds one token to each row. ``PromptCache`` and
``DecodeStep`` implement ``archon_core.contracts.packed.AttentionCache``, and keep the vectors of latent attention.

Legend: T tokens, S sequences, R active rows, K kv heads, D head dim of keys or of values, N cache entries in use per
row.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from archon_core.contracts.packed import AttentionSettings, PackedSequences
from archon_engine.nn.attention import AttentionBackend, PackedAttention

KeysValues = dict[str, tuple[Tensor, Tensor]]
"""Layer -> keys and values, both [T, K, D], of one sequence or of packed sequences."""

States = dict[str, tuple[Tensor, ...]]
"""Recurrent layer -> its states, each [S, ...]."""


@dataclass(frozen=True)
class KeptSequence:
    """What the layers keep of one sequence.

    Attributes:
        keys_values: of layers with attention.
        states: of recurrent layers, each [1, ...].
    """

    keys_values: KeysValues = field(default_factory=dict)
    states: States = field(default_factory=dict)


PLACES_MULTIPLE = 8
"""Row lengths are rounded up to a multiple of this: fused CUDA attention requires masks with aligned rows."""

SPARE_PLACES = 256
"""Least number of spare entries to allocate. Buffers that are too short grow by at least half."""


class PromptCache:
    """Attention within packed prompts that stores their keys and values.

    Args:
        backend: attention implementation; ``None`` chooses by device and dtype.
    """

    def __init__(self, backend: AttentionBackend | None = None) -> None:
        self._backend = backend
        self._layers: KeysValues = {}
        self._states: States = {}

    def states(self, layer: str) -> tuple[Tensor, ...] | None:
        """See ``AttentionCache.states``: every sequence starts here."""
        return None

    def keep_states(self, layer: str, states: tuple[Tensor, ...]) -> None:
        """See ``AttentionCache.keep_states``."""
        self._states[layer] = states

    def attend(
        self,
        layer: str,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        packed: PackedSequences,
        settings: AttentionSettings,
        sinks: Tensor | None = None,
    ) -> Tensor:
        """See ``AttentionCache.attend``. Every sequence starts at position 0."""
        self._layers[layer] = (k, v)
        attention = PackedAttention(layer, settings)
        attention.backend = self._backend
        return attention(q, k, v, replace(packed, cache=None), sinks)

    def store_latents(self, layer: str, latents: Tensor) -> None:
        """See ``archon_core.contracts.packed.LatentPrompts``. Values are a part of the latents, so none are stored."""
        self._layers[layer] = (latents, latents[..., :0])

    def split(self, lengths: tuple[int, ...]) -> list[KeptSequence]:
        """Keys, values and states per sequence, as views."""
        prompts = [KeptSequence() for _ in lengths]
        for layer, (keys, values) in self._layers.items():
            for prompt, k, v in zip(prompts, keys.split(lengths), values.split(lengths), strict=True):
                prompt.keys_values[layer] = (k, v)
        for layer, states in self._states.items():
            for number, prompt in enumerate(prompts):
                prompt.states[layer] = tuple(state[number : number + 1] for state in states)
        return prompts


class DecodeCache:
    """Keys and values of rows that grow by one token per step, in buffers [rows, K, entries, D] per layer; of recurrent
    layers, states [rows, ...].

    Active rows form a prefix: ``write_rows`` adds or replaces rows, ``move_rows`` fills the gaps of finished rows.
    Buffers are allocated with the first prompt.
    """

    def __init__(self, *, max_rows: int, max_places: int) -> None:
        self._max_rows = max_rows
        self._max_places = _round_up(max_places)
        self._layers: KeysValues = {}
        self._states: States = {}
        self._places = 0

    def reserve(self, *, max_rows: int, max_places: int) -> None:
        """Allow this many rows and entries, if they are more than before."""
        self._max_places = max(self._max_places, _round_up(max_places))
        if max_rows > self._max_rows:
            self._max_rows = max_rows
            for layer, (keys, values) in self._layers.items():
                self._layers[layer] = (self._grown(keys), self._grown(values))
            for layer, states in self._states.items():
                self._states[layer] = tuple(self._with_all_rows(state) for state in states)

    def write_rows(self, start: int, prompt: KeptSequence, copies: int) -> None:
        """Write ``copies`` rows of a sequence, from row ``start`` on. Does nothing on a rank without layers."""
        for layer, states in prompt.states.items():
            if layer not in self._states:
                self._states[layer] = tuple(self._with_all_rows(state[:0]) for state in states)
            for buffer, new in zip(self._states[layer], states, strict=True):
                buffer[start : start + copies] = new
        if not prompt.keys_values:
            return
        length = next(iter(prompt.keys_values.values()))[0].shape[0]
        self._reserve(length)
        for layer, (k, v) in prompt.keys_values.items():
            if layer not in self._layers:
                shape = (self._max_rows, k.shape[1], self._places)
                self._layers[layer] = (
                    _zeros(k, (*shape, k.shape[2]), by_dim=attends_by_products(k)),
                    _zeros(v, (*shape, v.shape[2])),
                )
            for buffer, new in zip(self._layers[layer], (k, v), strict=True):
                buffer[start : start + copies, :, :length] = new.transpose(0, 1)

    def move_rows(self, sources: Tensor, destinations: Tensor, longest: int) -> None:
        """Copy rows ``sources`` to ``destinations`` (int64); rows hold at most ``longest`` tokens."""
        for buffers in self._layers.values():
            for buffer in buffers:
                buffer[destinations, :, :longest] = buffer[sources, :, :longest]
        for states in self._states.values():
            for state in states:
                state[destinations] = state[sources]

    def begin_step(self, positions: Tensor, longest: int, *, is_even: bool = False) -> DecodeStep:
        """The attention cache for the next token of the active rows.

        Args:
            positions: int64 [R], position of each row's new token.
            longest: their maximum plus 1, as a host value.
            is_even: whether all positions are equal.
        """
        self._reserve(longest)
        return DecodeStep(self._layers, self._states, positions, longest, n_places=self._places, is_even=is_even)

    def _reserve(self, length: int) -> None:
        """Grow the buffers to at least ``length`` entries, layer by layer to limit peak memory."""
        if length <= self._places:
            return
        assert length <= self._max_places, (length, self._max_places)
        wanted = max(length + SPARE_PLACES, self._places * 3 // 2)
        self._places = min(_round_up(wanted), self._max_places)
        for layer, (keys, values) in self._layers.items():
            self._layers[layer] = (self._grown(keys), self._grown(values))

    def _with_all_rows(self, state: Tensor) -> Tensor:
        grown = state.new_zeros(self._max_rows, *state.shape[1:])
        grown[: len(state)] = state
        return grown

    def _grown(self, buffer: Tensor) -> Tensor:
        n_rows, n_heads, n_places, head_dim = buffer.shape
        by_dim = buffer.stride(-1) > buffer.stride(-2)
        grown = _zeros(buffer, (self._max_rows, n_heads, self._places, head_dim), by_dim=by_dim)
        grown[:n_rows, :, :n_places] = buffer
        return grown


class DecodeStep:
    """Attention of one new token per active row over the first ``longest`` of ``n_places`` entries of ``layers``, and
    the rows' states in ``states``."""

    def __init__(
        self,
        layers: KeysValues,
        states: States,
        positions: Tensor,
        longest: int,
        *,
        n_places: int,
        is_even: bool = False,
    ) -> None:
        self._layers = layers
        self._states = states
        self._positions = positions
        self._longest = longest
        self._n_places = min(_round_up(longest), n_places)
        self._is_even = is_even
        self._rows = torch.arange(len(positions), device=positions.device)
        self._masks: dict[int | None, Tensor] = {}
        self._masks_of_heads: dict[tuple[int | None, int], Tensor] = {}

    def states(self, layer: str) -> tuple[Tensor, ...] | None:
        """See ``AttentionCache.states``. S is R."""
        return tuple(state[: len(self._positions)] for state in self._states[layer])

    def keep_states(self, layer: str, states: tuple[Tensor, ...]) -> None:
        """See ``AttentionCache.keep_states``."""
        for buffer, new in zip(self._states[layer], states, strict=True):
            buffer[: len(new)] = new

    def attend(
        self,
        layer: str,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        packed: PackedSequences,
        settings: AttentionSettings,
        sinks: Tensor | None = None,
    ) -> Tensor:
        """See ``AttentionCache.attend``. T is R."""
        keys, values = self._layers[layer]
        self._write(keys, k)
        self._write(values, v)
        return self._attend(q, keys, values, settings, sinks)

    def attend_latents(
        self,
        layer: str,
        q: Tensor,
        latents: Tensor,
        value_dim: int,
        packed: PackedSequences,
        settings: AttentionSettings,
    ) -> Tensor:
        """See ``archon_core.contracts.packed.LatentSteps``."""
        keys, _ = self._layers[layer]
        self._write(keys, latents)
        return self._attend(q, keys, keys[..., :value_dim], settings)

    def _write(self, buffer: Tensor, new: Tensor) -> None:
        """Store an entry of every row."""
        if self._is_even:
            buffer[: len(new), :, self._longest - 1] = new
        else:
            buffer[self._rows, :, self._positions] = new

    def _attend(
        self, q: Tensor, keys: Tensor, values: Tensor, settings: AttentionSettings, sinks: Tensor | None = None
    ) -> Tensor:
        """Attend ``q`` [R, heads, D] to the buffers of keys and values."""
        n_rows, n_heads, head_dim = q.shape
        n_kv_heads = keys.shape[1]
        scale, softcap = settings.scale, settings.softcap
        if softcap is None and sinks is None and attends_by_products(q):
            return self._by_products(q, keys, values, settings)
        # Query heads that share a kv head take the place of the query sequence, so keys need no copy per query head.
        grouped = q.reshape(n_rows, n_kv_heads, n_heads // n_kv_heads, head_dim)
        keys, values = keys[:n_rows, :, : self._n_places], values[:n_rows, :, : self._n_places]
        mask = self._mask(settings.window, q.dtype)
        if softcap is None and sinks is None:
            attended = scaled_dot_product_attention(grouped, keys, values, attn_mask=mask, scale=scale)
        else:
            scores = grouped @ keys.transpose(-1, -2) * scale
            if softcap is not None:
                scores = torch.tanh(scores / softcap) * softcap
            upcast = (scores + mask).to(torch.promote_types(q.dtype, torch.float32))
            weights = upcast.softmax(-1) if sinks is None else _softmax_with_sinks(upcast, sinks)
            attended = weights.to(q.dtype) @ values
        return attended.reshape(n_rows, n_heads, values.shape[-1])

    def _by_products(self, q: Tensor, keys: Tensor, values: Tensor, settings: AttentionSettings) -> Tensor:
        n_rows, n_heads, head_dim = q.shape
        n_kv_heads, window = keys.shape[1], settings.window
        grouped = q.reshape(n_rows * n_kv_heads, n_heads // n_kv_heads, head_dim)
        if self._is_even and (window is None or window >= self._longest):
            # Every row sees every entry in use.
            by_dim = keys[:n_rows, :, : self._longest].transpose(-1, -2).flatten(0, 1)
            scores, n_places = torch.bmm(grouped, by_dim).mul_(settings.scale), self._longest
        else:
            if (window, n_kv_heads) not in self._masks_of_heads:
                mask = self._mask(window, q.dtype).expand(-1, n_kv_heads, -1, -1)
                self._masks_of_heads[window, n_kv_heads] = mask.flatten(0, 1)
            by_dim = keys[:n_rows, :, : self._n_places].transpose(-1, -2).flatten(0, 1)
            mask_of_heads, n_places = self._masks_of_heads[window, n_kv_heads], self._n_places
            scores = torch.baddbmm(mask_of_heads, grouped, by_dim, alpha=settings.scale)
        attended = torch.bmm(scores.softmax(-1), values[:n_rows, :, :n_places].flatten(0, 1))
        return attended.view(n_rows, n_heads, -1)

    def _mask(self, window: int | None, dtype: torch.dtype) -> Tensor:
        """Additive mask [R, 1, 1, N], built once per step and window and shared by the layers."""
        if window not in self._masks:
            places = torch.arange(self._n_places, device=self._positions.device)
            seen = places <= self._positions[:, None]
            if window is not None:
                seen &= places > self._positions[:, None] - window
            mask = torch.zeros(seen.shape, dtype=dtype, device=seen.device).masked_fill_(~seen, -torch.inf)
            self._masks[window] = mask[:, None, None, :]
        return self._masks[window]


def attends_by_products(x: Tensor) -> bool:
    """Whether decoding attends by two batched products, with keys stored by head dim, rather than by torch's fused
    attention: on CPUs, whose fused kernel is made for long queries and takes up to twice as long for one token. In
    16-bit types the fused kernel is needed for its sums in fp32."""
    return x.device.type == "cpu" and x.dtype in (torch.float32, torch.float64)


def _zeros(like: Tensor, shape: tuple[int, ...], *, by_dim: bool = False) -> Tensor:
    """A buffer [rows, K, entries, D]; ``by_dim`` for memory in the order [rows, K, D, entries].

    Zeros, not empty: a masked entry has weight 0, and 0 * NaN would be NaN.
    """
    if not by_dim:
        return like.new_zeros(shape)
    return like.new_zeros(*shape[:-2], shape[-1], shape[-2]).transpose(-1, -2)


def _softmax_with_sinks(scores: Tensor, sinks: Tensor) -> Tensor:
    """Weights [R, K, heads per kv head, N] of the entries; the sinks [heads] take their part of the sum."""
    of_head = sinks.to(scores.dtype).view(1, *scores.shape[1:3], 1).expand(*scores.shape[:-1], 1)
    return torch.cat((scores, of_head), dim=-1).softmax(-1)[..., :-1]


def _round_up(length: int) -> int:
    return -(-length // PLACES_MULTIPLE) * PLACES_MULTIPLE
