"""The input of a model's forward pass besides its tokens: positions of packed sequences, and requests to the head.

Legend: T tokens, S sequences, P positions with outputs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import Any, Literal, Protocol, runtime_checkable

import torch
from torch import Tensor

OutputName = Literal["logprobs", "entropy", "values", "logits"]


class ContextRanks(Protocol):
    """This rank's place among the context ranks, which share a pack's tokens in equal numbers. Which tokens a rank
    holds is up to the implementation."""

    rank: int
    size: int

    def places(self, n_tokens: int) -> tuple[range, ...]:
        """The places of this rank's tokens in a pack of ``n_tokens``, which ``size`` divides: ascending ranges, in the
        order in which the rank holds the tokens."""

    def rank_order(self, n_tokens: int) -> tuple[range, ...]:
        """The places of all tokens of such a pack in the order of the ranks, each of which holds an equal part."""

    def local_tokens(self, x: Tensor) -> Tensor:
        """This rank's part of ``x`` [T, ...]; T is a multiple of ``size``."""

    def gather_outputs(self, x: Tensor) -> Tensor:
        """Join the ranks' outputs [T / size, ...] to [T, ...], for a loss that every rank computes alike."""

    def gather_rows(self, x: Tensor) -> Tensor:
        """Join the ranks' outputs [n, ...], n of each rank, in rank order: [size n, ...]. Backward takes this rank's
        part of the gradient."""

    def stack(self, x: Tensor) -> Tensor:
        """The ranks' ``x``, of equal shape, in rank order, [size, ...]; backward sums gradients over the ranks."""

    def send_queries(self, q: Tensor) -> Any:
        """Start the exchange of queries [T / size, Hq, D], if the style has one. Work done before ``attend`` overlaps
        with it. Collective. Pass the result to ``attend`` exactly once, as its ``q``."""

    def attend(
        self,
        backend: Any,
        q: Any,
        k: Tensor,
        v: Tensor,
        packed: PackedSequences,
        settings: AttentionSettings,
        sinks: Tensor | None = None,
    ) -> Tensor:
        """Attention of this rank's queries [T / size, Hq, D] over the keys and values of all ranks, of which this one
        passes its own [T / size, Hkv, D]. Returns [T / size, Hq, Dv].

        Args:
            backend: computes attention without context ranks (``archon_engine.nn.attention.Backend``).
            q: queries, or what ``send_queries`` returned for them.
            k: keys.
            v: values.
            packed: the whole pack.
            settings: the layer's settings.
            sinks: [Hq], the scores of ``settings.sinks``; ``None`` without.
        """


class TensorRanks(Protocol):
    """This rank's place in its tensor-parallel group.

    Attributes:
        sequence_sharded: whether activations between regions hold 1 / size of the tokens.
    """

    rank: int
    size: int
    sequence_sharded: bool


@dataclass(frozen=True)
class AttentionSettings:
    """The settings of causal attention in one layer.

    Backends and caches receive this object whole. Each honours every field or raises for a value that it does not
    implement; ignoring one would give wrong numbers without an error.

    Attributes:
        scale: factor on the scores, such as ``head_dim ** -0.5``.
        window: number of keys that a token sees, its own included; ``None`` for all earlier ones.
        softcap: scores s become ``softcap * tanh(s / softcap)``, as in Gemma 2 (arXiv:2408.00118, section 2); ``None``
            leaves them.
        sinks: whether each head has a sink, a learned score that takes part in the softmax and contributes no value, as
            in gpt-oss (arXiv:2508.10925). The scores come as the argument ``sinks`` [heads].
    """

    scale: float
    window: int | None = None
    softcap: float | None = None
    sinks: bool = False


class AttentionCache(Protocol):
    """Keys and values of earlier tokens, and states of recurrent layers, kept by a generation loop."""

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
        """Store ``k`` [T, kv heads, head dim] and ``v`` [T, kv heads, value dim] under ``layer``, then attend ``q``
        [T, heads, head dim] to everything stored for its own sequence. Returns [T, heads, value dim].

        Args:
            layer: the layer's id.
            q: queries.
            k: new keys.
            v: new values.
            packed: the pack of the new tokens.
            settings: the layer's settings.
            sinks: [heads], the scores of ``settings.sinks``; ``None`` without.
        """

    def states(self, layer: str) -> tuple[Tensor, ...] | None:
        """The states that a recurrent layer kept after the earlier tokens, each [S, ...] for the sequences of the pack
        in order; ``None`` at the start of sequences. Models without recurrent layers do not call it."""

    def keep_states(self, layer: str, states: tuple[Tensor, ...]) -> None:
        """Keep the states of ``layer`` after the tokens of this pack, each [S, ...]."""


@runtime_checkable
class LatentPrompts(Protocol):
    """A cache of prompts that can also keep latent vectors, which latent attention makes the keys and values of all
    heads of (``archon_engine.nn.latent_attention``). Other caches receive these keys and values."""

    def store_latents(self, layer: str, latents: Tensor) -> None:
        """Store ``latents`` [T, 1, latent + rotated] under ``layer``. The layer attends within the prompts itself."""


@runtime_checkable
class LatentSteps(Protocol):
    """A cache of tokens that follow prompts in ``LatentPrompts``."""

    def attend_latents(
        self,
        layer: str,
        q: Tensor,
        latents: Tensor,
        value_dim: int,
        packed: PackedSequences,
        settings: AttentionSettings,
    ) -> Tensor:
        """Store ``latents`` [T, 1, latent + rotated] under ``layer``, then attend ``q`` [T, heads, latent + rotated] to
        all that are stored for its sequence. Values are their first ``value_dim`` elements: [T, heads, value_dim]."""


@dataclass(frozen=True)
class HeadInputs:
    """The request to the head of the last stage.

    Attributes:
        outputs: names of the per-token outputs to compute.
        targets: int64 [T], the token that each position predicts, -1 for none. Needed for ``logprobs`` and ``entropy``.
        temperature: logits are divided by it.
        positions: int64 [P], the only places to compute outputs at; ``None`` for all T. ``targets`` stays [T].
        scored: int64, the places with a target, if many have none: log-probabilities and entropies are computed there
            alone, and are 0 elsewhere. ``None`` computes them everywhere.
        places: int64 [P], the place from which each target is predicted, if places predict several tokens
            (``SharedPrefixes``). ``targets``, log-probabilities and entropies are then [P]; values and logits stay [T].
    """

    outputs: tuple[OutputName, ...]
    targets: Tensor | None = None
    temperature: float = 1.0
    positions: Tensor | None = None
    scored: Tensor | None = None
    places: Tensor | None = None

    def with_scored(self) -> HeadInputs:
        """The same request with ``scored`` found from ``targets``. On a GPU the host waits for their number."""
        assert self.targets is not None, "places are scored by their targets"
        return replace(self, scored=(self.targets >= 0).nonzero()[:, 0])


@dataclass(frozen=True)
class Auxiliary:
    """Numbers about the whole batch for layers that add a loss, such as routers, and where these layers report.

    A layer adds the gradient of its loss, divided by one of the numbers here, so that micro-batches and ranks add up.

    Attributes:
        n_tokens: tokens of the whole batch, of all ranks and micro-batches together, without padding.
        n_sequences: sequences of the whole batch.
        report: called with a layer's name and sums over this rank's tokens. A second call for the same micro-batch, as
            recomputation makes, replaces the first.
        group: the processes that run the same micro-batch number on other tokens; ``None`` if there is only this one.
    """

    n_tokens: int
    n_sequences: int
    report: Callable[[str, Mapping[str, Tensor]], None]
    group: Any = None


@dataclass(frozen=True)
class SharedPrefixes:
    """A pack that holds a prefix once that several sequences share: a tree, whose paths from a root are the sequences.

    The pack consists of segments in depth-first order, and a segment continues the path to a token before it. Whatever
    is computed for a token depends on its path alone, so it holds for every sequence through that token.

    Legend: T tokens of the pack, G segments of the pack with its padding, N tokens of all sequences.

    Attention needs ``key_tokens``, ``key_lengths`` and ``cu_keys``. Where context ranks gather keys and values, a rank
    attends with a pack of its queries alone: ``lengths``, ``cu_seqlens`` and the three fields then describe runs of
    queries instead of whole segments.

    Attributes:
        key_tokens: int64, for every segment the tokens of the path to its end, its own included, one segment after the
            other.
        key_lengths: the lengths of these G paths, on the host.
        cu_keys: int32 [G + 1], where each path starts in ``key_tokens``, then its length.
        segments: on the host, the lengths of the tree's segments.
        parents: on the host, for every segment of the tree the token that it continues; -1 for none.
        token_of: int64 [N], the token of the pack that stands for each token of the sequences, which follow one
            another as without sharing.
        sequence_of: int64 [N], the sequence of each.
        n_sequences: number of sequences.
        queries: on the host, the places of the tokens that have queries, as ascending ranges; ``None`` for all.
    """

    key_tokens: Tensor
    key_lengths: tuple[int, ...]
    cu_keys: Tensor
    segments: tuple[int, ...]
    parents: tuple[int, ...]
    token_of: Tensor
    sequence_of: Tensor
    n_sequences: int
    queries: tuple[range, ...] | None = None


@dataclass(frozen=True)
class PackedSequences:
    """Positions of the sequences that are packed into one token dimension.

    With ``shared``, ``cu_seqlens`` and ``lengths`` describe segments of a tree instead of sequences.

    Attributes:
        cu_seqlens: int32 [S + 1], the start of each sequence, then T. It describes the whole pack, even if
            ``context`` divides it.
        max_seqlen: length of the longest sequence, in tokens; also with ``shared``.
        positions: int64 [T], each token's place in its sequence, from 0; only this rank's [T / c] where ``context``
            cuts the pack.
        lengths: the sequences' lengths on the host, so that code per sequence needs no device synchronisation.
        head: what the head returns, with targets for the tokens of ``positions``; ``None`` on stages without a head.
        cache: keys and values of earlier tokens; ``None`` in training.
        context: the c ranks among which the pack's tokens are divided; ``None`` if this rank has all.
        n_padding: length of the last sequence if it is padding; otherwise 0.
        experts: int16 [T, layers, k], the experts to use for each token, such as those recorded during generation; cut
            as ``positions`` are. The router chooses for tokens with -1, and for all tokens when this is ``None``.
        record_experts: called by every layer with experts, with the layer's number in the whole model and the chosen
            experts, int [tokens held between regions, k]; ``None`` when choices are not recorded.
        auxiliary: data for layers that add a loss; ``None`` if nothing is trained or measured.
        shared: the tree, if sequences share prefixes; ``None`` for sequences end to end. Only models that declare the
            capability ``tree`` get packs with it.
    """

    cu_seqlens: Tensor
    max_seqlen: int
    positions: Tensor
    lengths: tuple[int, ...]
    head: HeadInputs | None = None
    cache: AttentionCache | None = None
    context: ContextRanks | None = None
    n_padding: int = 0
    experts: Tensor | None = None
    record_experts: Callable[[int, Tensor], None] | None = None
    auxiliary: Auxiliary | None = None
    shared: SharedPrefixes | None = None

    @classmethod
    def from_lengths(
        cls, lengths: tuple[int, ...], device: torch.device | str = "cpu", head: HeadInputs | None = None
    ) -> PackedSequences:
        """Sequences of ``lengths`` tokens, end to end, each from position 0."""
        starts = [0, *accumulate(lengths)]
        positions = [torch.arange(length) for length in lengths]
        places = torch.cat(positions) if positions else torch.empty(0, dtype=torch.int64)
        return cls(
            # Otherwise the host would wait for all work on the device. Pageable memory is read before the call returns.
            cu_seqlens=torch.tensor(starts, dtype=torch.int32).to(device, non_blocking=True),
            max_seqlen=max(lengths, default=0),
            positions=places.to(device, non_blocking=True),
            lengths=tuple(lengths),
            head=head,
        )

    def cut(self, context: ContextRanks) -> PackedSequences:
        """The same pack reduced to this rank's part of the tokens. T must be a multiple of the number of context
        ranks."""
        head = self.head
        if head is not None:
            assert head.positions is None, "outputs at chosen positions are for whole packs"
            if head.places is None:  # otherwise the builder of the pack has chosen those of this rank
                head = replace(head, targets=None if head.targets is None else context.local_tokens(head.targets))
            head = head if head.scored is None else head.with_scored()
        experts = None if self.experts is None else context.local_tokens(self.experts)
        positions = context.local_tokens(self.positions)
        return replace(self, positions=positions, head=head, context=context, experts=experts)

    def local_places(self, parallel: TensorRanks | None = None) -> Tensor:
        """int64 [own tokens], the place in the whole pack of each token that this rank holds between tensor regions.

        Args:
            parallel: the tensor ranks, which cut the tokens of ``positions`` further; ``None`` without tensor
                parallelism.
        """
        ranges = self.local_ranges(parallel)
        return torch.cat([torch.arange(r.start, r.stop, device=self.positions.device) for r in ranges])

    def local_ranges(self, parallel: TensorRanks | None = None) -> tuple[range, ...]:
        """The places in ``local_places`` as ascending ranges, computed on the host."""
        n_own = self.positions.shape[0]
        places = (range(n_own),) if self.context is None else self.context.places(n_own * self.context.size)
        if parallel is None or not parallel.sequence_sharded:
            return places
        n_own //= parallel.size
        return cut_ranges(places, parallel.rank * n_own, n_own)

    def local_rows(self, x: Tensor) -> Tensor:
        """The rows of ``x`` [T, ...] that belong to this rank's tokens."""
        return x if self.context is None else self.context.local_tokens(x)


def cut_ranges(ranges: Sequence[range], start: int, number: int) -> tuple[range, ...]:
    """The elements ``start`` to ``start + number`` of ``ranges`` joined end to end, again as ranges, none empty."""
    kept, before = [], 0
    for part in ranges:
        first, stop = max(start - before, 0), min(start + number - before, len(part))
        if first < stop:
            kept.append(part[first:stop])
        before += len(part)
    return tuple(kept)
