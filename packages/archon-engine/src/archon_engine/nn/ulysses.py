"""Context parallelism as in DeepSpeed Ulysses (Jacobs et al. 2023, arXiv:2309.14509).

Every rank holds T / c of a pack's tokens. Before attention, all-to-alls give each rank all T tokens of its share of the
heads, and after it another one returns the results. All other layers work on single tokens. Cuts may fall inside a
sequence, because ``cu_seqlens`` describes the whole pack. The number of heads limits c (not so in ``key_gathering``).

Context parallelism is a property of the batch (``PackedSequences.context``), not of the module, so the same module also
runs whole packs, for instance in generation.

Queries travel while keys and values are still being projected (``PackedAttention.send_queries``), and their gradients
while those projections are differentiated. So queries, and keys with values, have an exchange each. A model that
projects all three before it calls attention has a single exchange with the same bytes: without overlap, a second one
would only add its latency.

Legend: T tokens of the pack, c context ranks, H heads of any kind, D head dimension.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from archon_core.contracts.packed import AttentionSettings, PackedSequences
from archon_engine import compat
from archon_engine.nn.tensor_parallel import gather_results


@dataclass(frozen=True)
class SentHeads:
    """Heads on their way to the context ranks that attend with them.

    Attributes:
        receive: waits for the exchange; called once: [c, T / c, own heads x D of all tensors side by side].
        widths: own heads x D of each tensor.
        head_dims: D of each tensor.
    """

    receive: Callable[[], Tensor]
    widths: tuple[int, ...]
    head_dims: tuple[int, ...]

    def wait(self) -> list[Tensor]:
        """This rank's heads of all tokens: each [T, H / c, D]."""
        # What arrives is ordered by sender, which is the order of the tokens: rank i holds the i-th part of the pack.
        whole = self.receive().flatten(0, 1).split(self.widths, dim=1)
        return [part.unflatten(1, (-1, dim)) for part, dim in zip(whole, self.head_dims, strict=True)]


@dataclass(frozen=True)
class ContextParallel:
    """A rank's place among the context ranks, which share a pack's tokens and exchange heads. Rank i holds the i-th of
    ``size`` equal parts.

    Attributes:
        group: the process group.
        rank: place in it.
        size: ranks in it.
    """

    group: Any
    rank: int
    size: int

    @property
    def multiple(self) -> int:
        """The number of tokens of a pack must be a multiple of this."""
        return self.size

    def deal(self, packed: PackedSequences) -> ContextParallel:
        """The ranks that divide a pack: these, whatever it contains."""
        return self

    def places(self, n_tokens: int) -> tuple[range, ...]:
        """See ``archon_core.contracts.packed.ContextRanks``."""
        assert n_tokens % self.size == 0, f"{n_tokens} tokens were not padded for {self.size} context ranks"
        part = n_tokens // self.size
        return (range(self.rank * part, (self.rank + 1) * part),)

    def rank_order(self, n_tokens: int) -> tuple[range, ...]:
        """See ``archon_core.contracts.packed.ContextRanks``."""
        return (range(n_tokens),)

    def local_tokens(self, x: Tensor) -> Tensor:
        """This rank's part of ``x`` [T, ...]; T is a multiple of ``multiple``."""
        parts = [x[place.start : place.stop] for place in self.places(x.shape[0])]
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def gather_outputs(self, x: Tensor) -> Tensor:
        """Outputs [T / c, ...] of each rank to [T, ...], for a loss that every rank computes in the same way."""
        return self.gather_rows(x)

    def gather_rows(self, x: Tensor) -> Tensor:
        """Outputs [n, ...] of each rank in rank order: [c n, ...]."""
        return gather_results(x, 0, group=self.group, rank=self.rank, size=self.size)

    def stack(self, x: Tensor) -> Tensor:
        """The ranks' ``x``, of equal shape, in rank order, [c, ...]. Each rank may use all parts: backward sums their
        gradients over the ranks."""
        return compat.all_gather_with_grad(x[None], 0, self.group)

    def send_queries(self, q: Tensor) -> Tensor | SentHeads:
        """See ``archon_core.contracts.packed.ContextRanks``."""
        return self.send_heads(q)

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
        """See ``archon_core.contracts.packed.ContextRanks``."""
        q, k, v = self.gather_sequences(q, k, v)
        sinks = None if sinks is None else self.local_heads(sinks)
        return self.scatter_sequences(backend.attend(q, k, v, packed, settings, sinks))

    def local_heads(self, sinks: Tensor) -> Tensor:
        """The sinks [H / c] of this rank's heads; gradients of the others' come from the other context ranks."""
        return sinks.chunk(self.size)[self.rank]

    def send_heads(self, *heads: Tensor) -> SentHeads:
        """Start to exchange all heads of this rank's tokens, each [T / c, H, D] with a multiple of c as H, for this
        rank's heads of all tokens. One exchange for all, since its latency counts once."""
        # Side by side: [T / c, c, own heads x D].
        by_rank = [x.unflatten(1, (self.size, -1)).flatten(2) for x in heads]
        # An all-to-all sends the r-th part of dim 0 to rank r, so the dim of ranks comes first.
        rows = (by_rank[0] if len(by_rank) == 1 else torch.cat(by_rank, dim=2)).transpose(0, 1)
        each = (1,) * self.size
        receive = compat.start_all_to_all(rows, self.group, each, each)
        return SentHeads(receive, tuple(x.shape[2] for x in by_rank), tuple(x.shape[2] for x in heads))

    def gather_sequences(self, q: Tensor | SentHeads, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """All heads of this rank's tokens to this rank's heads of all tokens: each [T / c, H, D] to [T, H / c, D].

        Key and value heads are replicated first where c does not divide their number. The number of query heads is a
        multiple of c and of the number of key heads; ``options.context_style`` chooses ranks for which it is.
        """
        # The fewest copies that c divides. Copies of a head are neighbours, so the r-th part of the query heads still
        # reads the r-th part of the key heads, in groups of one size, as backends expect.
        copies = math.lcm(k.shape[1], self.size) // k.shape[1]
        k, v = replicate_heads(k, copies), replicate_heads(v, copies)
        if not isinstance(q, SentHeads):
            q, k, v = self.send_heads(q, k, v).wait()
            return q, k, v
        # Queries are sent first, and waited for first. Backward then waits for the gradients of keys and values first,
        # whose projections come later in the graph, and those of queries travel meanwhile.
        keys_and_values = self.send_heads(k, v)
        return (*q.wait(), *keys_and_values.wait())

    def scatter_sequences(self, out: Tensor) -> Tensor:
        """This rank's heads of all tokens to all heads of this rank's tokens: [T, H / c, D] to [T / c, H, D]."""
        by_rank = out.unflatten(0, (self.size, -1))
        received = compat.all_to_all_with_grad(by_rank, self.group)
        # [c, T / c, H / c, D], ordered by sender, which is the order of the heads: joined, they are all heads again.
        return received.transpose(0, 1).flatten(1, 2)


def replicate_heads(x: Tensor, copies: int) -> Tensor:
    """Each head of ``x`` [T, H, D] ``copies`` times, neighbours: [T, H copies, D]. Backward sums over the copies."""
    return x if copies == 1 else x.repeat_interleave(copies, dim=1)
