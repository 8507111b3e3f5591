"""Context parallelism that gathers keys and values: each rank attends from its own tokens to all of the pack.

An all-gather gives every rank the keys and values of the whole pack, and its backward pass, a reduce-scatter, returns
the summed gradients to the ranks that computed them. No number of heads limits the number of ranks. What is gathered
does not shrink with more ranks, unlike the exchange of heads (``nn.ulysses``), but grouped key heads keep it small.

Both can be combined. The c context ranks are then g groups of u neighbours: a group exchanges heads over the part of
the pack that it holds together, and the ranks with equal heads in all groups gather keys and values. u divides the
heads, and g may be any number.

Which tokens a group holds is decided for each pack (``nn.dealing``). ``ContextParallel.local_tokens`` takes a rank's
tokens, ``gather_outputs`` restores the order of the pack, and every per-token field passes through them, so losses see
the pack as it is. If sequences share prefixes, blocks are parts of the tree, and queries see the gathered keys of their
paths. Layers that read neighbouring tokens, such as recurrent ones, need parts in the order of the pack;
models with such layers keep it (``in_order``), and their last ranks compute more of the attention.

Legend: T tokens of the pack, c context ranks, g groups, u ranks of a group, H heads of any kind, D head dimension.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor

from archon_core.contracts.packed import AttentionSettings, PackedSequences, SharedPrefixes, cut_ranges
from archon_engine import compat
from archon_engine.nn.dealing import Span, deal_blocks, runs_of, spans_of
from archon_engine.nn.ulysses import ContextParallel, SentHeads


@dataclass(frozen=True)
class DealtPack:
    """One pack as the context ranks hold it.

    Attributes:
        n_tokens: T.
        order: the equal blocks of the pack in the order in which groups hold them, equally many per group.
        own: places of this rank's tokens.
        spans: spans of the tokens of this rank's group; none if sequences share prefixes.
        packs: for each span, the pack of its keys.
        tree: the group's part of a tree; ``None`` if sequences share nothing.
    """

    n_tokens: int
    order: tuple[int, ...]
    own: tuple[range, ...]
    spans: tuple[Span, ...] = ()
    packs: tuple[PackedSequences, ...] = ()
    tree: PackedSequences | None = None

    def attend(
        self, backend: Any, q: Tensor, k: Tensor, v: Tensor, settings: AttentionSettings, sinks: Tensor | None
    ) -> Tensor:
        """Attention of the group's queries [T / g, Hq, D] over all keys and values [T, Hkv, D]."""
        if self.tree is not None:
            return backend.attend(q, k, v, self.tree, settings, sinks)
        # Split, not sliced: the gradient of a slice is a tensor of all rows.
        queries = q.split([len(span.queries) for span in self.spans])
        parts = []
        for rows, span, keys in zip(queries, self.spans, self.packs, strict=True):
            seen = slice(span.keys.start, span.keys.stop)
            parts.append(backend.attend(rows, k[seen], v[seen], keys, settings, sinks))
        return parts[0] if len(parts) == 1 else torch.cat(parts)


@dataclass(frozen=True)
class KeyGathering(ContextParallel):
    """A rank's place among context ranks that gather keys and values.

    Attributes:
        across: the ranks that gather, one of each group, in the order of the groups.
        within: the ranks of this rank's group, which exchange heads; ``None`` for groups of one rank.
        in_order: whether ranks hold parts of the pack in its order.
        dealt: the current pack; ``None`` before ``deal``.
    """

    across: ContextParallel
    within: ContextParallel | None = None
    in_order: bool = False
    dealt: DealtPack | None = None

    @property
    def multiple(self) -> int:
        """The number of tokens of a pack must be a multiple of this."""
        return self.size if self.in_order else math.lcm(self.size, 2 * self.across.size)

    def deal(self, packed: PackedSequences) -> KeyGathering:
        """These ranks with a whole pack, padding included."""
        lengths, shared = packed.lengths, packed.shared
        n_tokens, n_groups = sum(lengths), self.across.size
        assert n_tokens % self.multiple == 0, f"{n_tokens} tokens were not padded for {self.size} context ranks"
        parents = None if shared is None else shared.parents
        order = tuple(range(n_groups)) if self.in_order else deal_blocks(lengths, n_groups, parents)
        per_group, block = len(order) // n_groups, n_tokens // len(order)
        held = order[self.across.rank * per_group : (self.across.rank + 1) * per_group]
        ranges = _joined([range(i * block, (i + 1) * block) for i in held])
        part = n_tokens // self.size
        own = ranges if self.within is None else cut_ranges(ranges, self.within.rank * part, part)
        if shared is not None:
            return replace(self, dealt=DealtPack(n_tokens, order, own, tree=part_of_tree(packed, shared, ranges)))
        spans = spans_of(lengths, ranges)
        packs = tuple(PackedSequences.from_lengths(span.lengths, packed.cu_seqlens.device) for span in spans)
        return replace(self, dealt=DealtPack(n_tokens, order, own, spans, packs))

    def places(self, n_tokens: int) -> tuple[range, ...]:
        return self._pack(n_tokens).own

    def rank_order(self, n_tokens: int) -> tuple[range, ...]:
        order = self._pack(n_tokens).order
        block = n_tokens // len(order)
        return tuple(range(i * block, (i + 1) * block) for i in order)

    def gather_outputs(self, x: Tensor) -> Tensor:
        return self._in_pack_order(self.gather_rows(x))

    def send_queries(self, q: Tensor) -> Tensor | SentHeads:
        # Keys and values are gathered, queries stay, except within a group.
        return q if self.within is None else self.within.send_queries(q)

    def attend(
        self,
        backend: Any,
        q: Tensor | SentHeads,
        k: Tensor,
        v: Tensor,
        packed: PackedSequences,
        settings: AttentionSettings,
        sinks: Tensor | None = None,
    ) -> Tensor:
        within = self.within
        if within is not None:
            q, k, v = within.gather_sequences(q, k, v)
            sinks = None if sinks is None else within.local_heads(sinks)
        assert isinstance(q, Tensor), "queries were received"
        k, v = self.gather_keys(k, v)
        out = self._pack(k.shape[0]).attend(backend, q, k, v, settings, sinks)
        return out if within is None else within.scatter_sequences(out)

    def gather_keys(self, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values of one group's tokens, [T / g, H, D], to those of the whole pack in its order, [T, H, D].
        Backward sums their gradients over the groups."""
        # One exchange for both, since its latency counts once per layer.
        rows = torch.cat((k.flatten(1), v.flatten(1)), dim=1)
        whole = self._in_pack_order(compat.all_gather_with_grad(rows, 0, self.across.group))
        keys, values = whole.split((k[0].numel(), v[0].numel()), dim=1)
        return keys.unflatten(1, k.shape[1:]), values.unflatten(1, v.shape[1:])

    def _in_pack_order(self, x: Tensor) -> Tensor:
        """Rows [T, ...] in the order of the ranks to the order of the pack."""
        order = self._pack(x.shape[0]).order
        if order == tuple(range(len(order))):
            return x
        blocks = x.split(x.shape[0] // len(order))
        return torch.cat([blocks[order.index(block)] for block in range(len(order))])

    def _pack(self, n_tokens: int) -> DealtPack:
        assert self.dealt is not None, "a pack is dealt before its tokens are divided"
        assert self.dealt.n_tokens == n_tokens, f"a pack of {self.dealt.n_tokens} tokens was dealt, not of {n_tokens}"
        return self.dealt


def part_of_tree(packed: PackedSequences, shared: SharedPrefixes, ranges: Sequence[range]) -> PackedSequences:
    """The pack with which the tokens in ``ranges`` attend to the keys of the whole tree.

    Args:
        packed: the whole tree.
        shared: its prefixes.
        ranges: ascending ranges.
    """
    runs, ends = runs_of(shared.segments, ranges), list(accumulate(shared.segments))
    paths = shared.key_tokens.split(shared.key_lengths)
    # A path ends with its segment, possibly after the run.
    key_lengths = tuple(len(paths[run.segment]) - (ends[run.segment] - run.queries.stop) for run in runs)
    keys = [paths[run.segment][:length] for run, length in zip(runs, key_lengths, strict=True)]
    device = packed.cu_seqlens.device
    return replace(
        PackedSequences.from_lengths(tuple(len(run.queries) for run in runs), device),
        max_seqlen=max(key_lengths),
        positions=torch.cat([packed.positions[part.start : part.stop] for part in ranges]),
        shared=replace(
            shared,
            key_tokens=torch.cat(keys),
            key_lengths=key_lengths,
            cu_keys=torch.tensor([0, *accumulate(key_lengths)], dtype=torch.int32).to(device),
            queries=tuple(ranges),
        ),
    )


def _joined(ranges: Sequence[range]) -> tuple[range, ...]:
    """Ascending ranges, with neighbours as one."""
    joined: list[range] = []
    for part in ranges:
        if joined and joined[-1].stop == part.start:
            joined[-1] = range(joined[-1].start, part.stop)
        else:
            joined.append(part)
    return tuple(joined)
