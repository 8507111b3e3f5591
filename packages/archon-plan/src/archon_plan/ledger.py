"""Adds up what one rank sends, by group, collective and purpose."""

from __future__ import annotations

from dataclasses import dataclass

from archon_core.layout.dims import ParallelDims
from archon_plan.results import Axis, Collective, Transfer


@dataclass(frozen=True)
class Group:
    """The ranks of a collective.

    Attributes:
        axis: which.
        size: how many; nothing is sent in a group of one.
    """

    axis: Axis
    size: int

    @classmethod
    def of(cls, axis: Axis, dims: ParallelDims) -> Group:
        """The group along ``axis``. That of ``ep`` includes ``etp``, as in the exchange of tokens."""
        sizes: dict[Axis, int] = {
            "fsdp": dims.dp_shard * dims.cp,
            "ep": dims.ep * dims.etp,
            "stage": dims.stage_size,
        }
        return cls(axis, sizes[axis] if axis in sizes else getattr(dims, axis))


class Ledger:
    """The transfers of one pipeline rank, under construction."""

    def __init__(self) -> None:
        self._entries: dict[tuple[Group, Collective, str, bool], list[float]] = {}

    def add(
        self,
        group: Group,
        collective: Collective,
        purpose: str,
        buffer: float,
        calls: int,
        *,
        overlaps: bool = False,
    ) -> None:
        """Add ``calls`` equal collectives.

        Args:
            group: the ranks.
            collective: which.
            purpose: as in ``Transfer``.
            buffer: bytes of one call: of the whole result for an all-gather, of a rank's input for the others.
            calls: number of calls.
            overlaps: whether they run beside computation.
        """
        n = group.size
        # Multiplied before it is divided: exact as long as the result is whole.
        match collective:
            case "all_gather" | "reduce_scatter" | "all_to_all":
                sent = calls * buffer * (n - 1) / n
            case "all_reduce":
                sent = 2 * calls * buffer * (n - 1) / n
            case _:
                sent = calls * buffer
        self.add_sent(group, collective, purpose, sent, calls, overlaps=overlaps)

    def add_sent(
        self, group: Group, collective: Collective, purpose: str, sent: float, calls: int, *, overlaps: bool = False
    ) -> None:
        """Add ``calls`` collectives in which this rank sends ``sent`` bytes to others, all calls together."""
        if group.size == 1 or not calls:
            return
        entry = self._entries.setdefault((group, collective, purpose, overlaps), [0, 0])
        entry[0] += calls
        entry[1] += sent

    def transfers(self, pipeline_rank: int) -> tuple[Transfer, ...]:
        """All entries, in the order in which their kinds were first added."""
        return tuple(
            Transfer(group.axis, group.size, collective, purpose, calls, sent, overlaps, pipeline_rank)
            for (group, collective, purpose, overlaps), (calls, sent) in self._entries.items()
        )
