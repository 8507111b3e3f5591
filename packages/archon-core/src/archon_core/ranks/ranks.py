"""All processes of a run, as trainers see them: who am I, and how do we agree on a small Python value.

Values are pickled and travel over gloo, whatever the device is. They are for counts, flags, texts, rewards and token
ids, not for weights.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, TypeVar

T = TypeVar("T")


@dataclass(frozen=True)
class Ranks:
    """The processes of a run. Every method but the properties must be called by all of them, in the same order.

    Attributes:
        rank: this process, from 0.
        size: how many there are.
        group: the ``ProcessGroup``; ``None`` for torch's default one. Not used when ``size`` is 1.
    """

    rank: int = 0
    size: int = 1
    group: Any = None

    @classmethod
    def of_process_group(cls, group: Any = None) -> Ranks:
        """The members of ``group``, or of the default group; one single rank when torch.distributed is not set up."""
        import torch.distributed as dist

        if not (dist.is_available() and dist.is_initialized()):
            return cls()
        return cls(dist.get_rank(group), dist.get_world_size(group), group)

    @property
    def is_first(self) -> bool:
        """Whether this is the process that writes files and talks to the user."""
        return self.rank == 0

    def gather(self, value: T) -> list[T]:
        """``value`` of every rank, in order of ranks."""
        if self.size == 1:
            return [value]
        import torch.distributed as dist

        values: list[Any] = [None] * self.size
        dist.all_gather_object(values, value, group=self.group)
        return values

    def broadcast(self, value: T) -> T:
        """``value`` of rank 0; what the others pass is not used."""
        if self.size == 1:
            return value
        import torch.distributed as dist

        values = [value]
        dist.broadcast_object_list(values, group=self.group, group_src=0)
        return values[0]

    def any(self, flag: bool) -> bool:
        """Whether ``flag`` is true on some rank."""
        return any(self.gather(flag))

    def barrier(self) -> None:
        """Wait until all ranks are here."""
        self.gather(None)

    def apart(self) -> Ranks:
        """The same processes with a gloo group of their own, for a thread that meets while the main one does, too."""
        if self.size == 1:
            return self
        import torch.distributed as dist

        return Ranks(self.rank, self.size, dist.new_group(self._members(), backend="gloo"))

    def _members(self) -> list[int]:
        import torch.distributed as dist

        return dist.get_process_group_ranks(self.group or dist.group.WORLD)


@dataclass(frozen=True)
class DataRanks:
    """The data-parallel ranks of an engine: each works on sequences of its own.

    Ranks that share their sequences, such as tensor ranks, have the same ``rank`` here.

    Attributes:
        rank: of this process.
        size: how many there are.
        everyone: all processes of the engine.
        members: for each data rank, in order, one process that speaks for it.
    """

    rank: int = 0
    size: int = 1
    everyone: Ranks = Ranks()
    members: tuple[int, ...] = (0,)

    def gather(self, value: T) -> list[T]:
        """``value`` of every data rank, in order. All processes of the engine must call it."""
        values = self.everyone.gather(value)
        return [values[member] for member in self.members]
