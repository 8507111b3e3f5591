"""Ranks as threads of one process: what they exchange is pickled, and who says something else than the others fails.

They keep the trainers' tests independent of process groups, and fast.
"""

from __future__ import annotations

import pickle
import threading
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from archon_core.ranks.ranks import Ranks

TIMEOUT = 120
"""Seconds that a rank waits for the others: a test that would hang fails instead."""

_here = threading.local()


def ranks_here() -> Ranks:
    """All ranks, as the calling thread sees them; a single one outside ``run_on_ranks``."""
    return getattr(_here, "ranks", Ranks())


class Meeting:
    """Where the ranks exchange values."""

    def __init__(self, size: int, *, with_other: bool = True) -> None:
        self.other = Meeting(size, with_other=False) if with_other else None  # for threads that meet beside the ranks
        self.barrier = threading.Barrier(size, timeout=TIMEOUT)
        self.slots: list[tuple[str, bytes]] = [("", b"")] * size

    def exchange(self, rank: int, what: str, value: Any) -> list[Any]:
        self.slots[rank] = what, pickle.dumps(value)
        self.barrier.wait()
        said = list(self.slots)
        self.barrier.wait()
        assert {name for name, _ in said} == {what}, f"ranks met for different things: {[name for name, _ in said]}"
        return [pickle.loads(content) for _, content in said]


@dataclass(frozen=True)
class ThreadRanks(Ranks):
    """``Ranks`` whose ``group`` is a ``Meeting``."""

    def gather(self, value: Any) -> list[Any]:
        return self.group.exchange(self.rank, "gather", value)

    def broadcast(self, value: Any) -> Any:
        return self.group.exchange(self.rank, "broadcast", value)[0]

    def apart(self) -> Ranks:
        self.group.exchange(self.rank, "apart", None)
        return replace(self, group=self.group.other)


def run_on_ranks(size: int, body: Callable[[Ranks], None]) -> None:
    """Run ``body`` on ``size`` ranks and wait for all; raises what the first rank to fail raised."""
    from transformers import CONFIG_MAPPING  # noqa: F401  (not safe for two threads that import it first)

    meeting = Meeting(size)
    failures: list[BaseException] = []

    def run(rank: int) -> None:
        _here.ranks = ThreadRanks(rank, size, meeting)
        try:
            body(_here.ranks)
        # KeyboardInterrupt, too: that is how trainers end after a request to stop.
        except BaseException as error:
            failures.append(error)
            meeting.barrier.abort()

    threads = [threading.Thread(target=run, args=(rank,), name=f"rank {rank}") for rank in range(size)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    causes = [error for error in failures if not isinstance(error, threading.BrokenBarrierError)]
    if causes or failures:
        raise (causes or failures)[0]
