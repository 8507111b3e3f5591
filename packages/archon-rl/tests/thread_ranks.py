"""Ranks as threads of one process: what they exchange is pickled, and who says something else than the others fails.

They keep the trainers' tests independent of process groups, and fast.
"""

from __future__ import annotations

import pickle
import queue
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from archon_core.ranks.ranks import Ranks
from archon_core.ranks.role_link import RoleLink, RoleMessage
from archon_core.ranks.role_ranks import ACTOR

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


class ThreadChannel:
    """``role_link.Channel`` of a sender and of receivers, each of which has a queue of pickled messages."""

    def __init__(self, queues: list[queue.Queue[bytes | None]]) -> None:
        self.queues = queues

    def send(self, message: RoleMessage) -> None:
        for one in self.queues:
            one.put(pickle.dumps(message))

    def receive(self) -> RoleMessage:
        (one,) = self.queues
        content = one.get(timeout=TIMEOUT)
        if content is None:
            raise threading.BrokenBarrierError
        return pickle.loads(content)


def run_on_roles(sizes: Mapping[str, int], body: Callable[[Ranks, str, Mapping[str, RoleLink]], None]) -> None:
    """Run ``body`` on the ranks of all roles and wait for all; raises what the first rank to fail raised.

    Args:
        sizes: role -> number of its ranks; the actor's first.
        body: gets the ranks of a role, its name, and its links.
    """
    meetings = {role: Meeting(size) for role, size in sizes.items()}
    queues: list[queue.Queue[bytes | None]] = []
    failures: list[BaseException] = []

    def channels(n_senders: int, n_receivers: int) -> tuple[list[ThreadChannel | None], list[ThreadChannel]]:
        """The ends of the senders, of which only the first has one, and of the receivers."""
        made: list[queue.Queue[bytes | None]] = [queue.Queue() for _ in range(n_receivers)]
        queues.extend(made)
        return [ThreadChannel(made), *[None] * (n_senders - 1)], [ThreadChannel([one]) for one in made]

    links: dict[str, list[dict[str, RoleLink]]] = {role: [{} for _ in range(size)] for role, size in sizes.items()}
    n_actors = sizes[ACTOR]
    for role, size in sizes.items():
        if role == ACTOR:
            continue
        background: tuple[list[RoleLink | None], list[RoleLink | None]] = [None] * n_actors, [None] * size
        for _ in range(2):  # the first one is the background link of the second
            askers, served = channels(n_actors, size)
            repliers, receivers = channels(size, n_actors)
            background = (
                [RoleLink(1, *ends) for ends in zip(askers, receivers, background[0], strict=True)],
                [RoleLink(1, *ends) for ends in zip(served, repliers, background[1], strict=True)],
            )
        for ends, link in zip(links[ACTOR], background[0], strict=True):
            ends[role] = link
        for ends, link in zip(links[role], background[1], strict=True):
            ends[ACTOR] = link

    def run(role: str, rank: int) -> None:
        _here.ranks = ThreadRanks(rank, sizes[role], meetings[role]) if sizes[role] > 1 else Ranks()
        try:
            body(_here.ranks, role, links[role][rank])
        except BaseException as error:
            failures.append(error)
            for meeting in meetings.values():
                meeting.barrier.abort()
            for one in queues:
                one.put(None)

    threads = [threading.Thread(target=run, args=(role, rank)) for role, size in sizes.items() for rank in range(size)]
    try:
        _join(threads, failures)
    finally:
        for one in queues:
            one.put(None)  # the roles' background threads wait for requests until their process ends


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
    _join(threads, failures)


def _join(threads: list[threading.Thread], failures: list[BaseException]) -> None:
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    causes = [error for error in failures if not isinstance(error, threading.BrokenBarrierError)]
    if causes or failures:
        raise (causes or failures)[0]
