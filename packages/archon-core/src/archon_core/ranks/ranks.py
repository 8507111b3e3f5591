"""``Ranks``: the processes of a run, and the exchange of small Python values between them.

Values are pickled and sent over gloo on any device. They are for counts, flags, texts, rewards and token ids, not for
weights.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, TypeVar

T = TypeVar("T")


@dataclass(frozen=True)
class Ranks:
    """The processes of a run. Every method but the properties must be called by all of them, in the same order.

    Attributes:
        rank: of this process, from 0.
        size: number of processes.
        group: the ``ProcessGroup``; ``None`` for torch's default group. Not used if ``size`` is 1.
    """

    rank: int = 0
    size: int = 1
    group: Any = None

    @classmethod
    def of_process_group(cls, group: Any = None) -> Ranks:
        """The members of ``group``, or of the default group; a single rank without torch.distributed."""
        import torch.distributed as dist

        if not (dist.is_available() and dist.is_initialized()):
            return cls()
        return cls(dist.get_rank(group), dist.get_world_size(group), group)

    @property
    def is_first(self) -> bool:
        """Whether this process writes files and prints output."""
        return self.rank == 0

    def gather(self, value: T) -> list[T]:
        """The values of all ranks, in rank order."""
        if self.size == 1:
            return [value]
        import torch.distributed as dist

        values: list[Any] = [None] * self.size
        dist.all_gather_object(values, value, group=self.group)
        return values

    def broadcast(self, value: T) -> T:
        """The value of rank 0; other values are ignored."""
        if self.size == 1:
            return value
        import torch.distributed as dist

        values = [value]
        dist.broadcast_object_list(values, group=self.group, group_src=0)
        return values[0]

    def any(self, flag: bool) -> bool:
        """Whether ``flag`` is true on any rank."""
        return any(self.gather(flag))

    def barrier(self) -> None:
        """Wait for all ranks."""
        self.gather(None)

    def apart(self) -> Ranks:
        """The same processes with a separate gloo group, for collectives in a background thread."""
        if self.size == 1:
            return self
        import torch.distributed as dist

        return Ranks(self.rank, self.size, dist.new_group(self._members(), backend="gloo"))

    def _members(self) -> list[int]:
        import torch.distributed as dist

        return dist.get_process_group_ranks(self.group or dist.group.WORLD)


@dataclass(frozen=True)
class DataRanks:
    """The data-parallel ranks of an engine, each with its own sequences.

    Ranks that work on the same sequences, such as tensor ranks, have the same ``rank`` here.

    Attributes:
        rank: data rank of this process.
        size: number of data ranks.
        everyone: all processes of the engine.
        members: per data rank, the process that represents it.
    """

    rank: int = 0
    size: int = 1
    everyone: Ranks = Ranks()
    members: tuple[int, ...] = (0,)

    @property
    def is_representative(self) -> bool:
        """Whether ``gather`` takes the value of this process as its data rank's."""
        return self.members[self.rank] == self.everyone.rank

    def gather(self, value: T) -> list[T]:
        """The values of all data ranks, in order. Collective over all processes of the engine."""
        values = self.everyone.gather(value)
        return [values[member] for member in self.members]
