"""The collector's service with a trainer that trains, evaluates, publishes and dies, over random schedules in virtual
time.

Samplers are fake: they take random times, reject some groups, and label tokens with the versions that the servers hold
meanwhile. The service, its window and its messages are real.
"""

from __future__ import annotations

import asyncio
import random
import socket
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from virtual_time import run_virtually

from archon_core.contracts.workflows import NO_VERSION, Trajectory
from archon_core.errors import TrainingError
from archon_rl.collector.batches import BatchRule, Pace
from archon_rl.collector.group import Group
from archon_rl.collector.messages import packed, receive_async, unpacked, value_of
from archon_rl.collector.service import CollectorService
from archon_rl.collector.states import read_batch, read_settled, read_state, state_data
from archon_rl.collector.window import GroupWindow, Settled, WindowState

STEPS = 8
LONGEST = 10.0
"""Seconds of the slowest group, and of the slowest step."""

MOST_LOSSES = 3
"""Collectors that die alone. Each is replaced by one that samples everything again, which would hide what is lost."""

OPTIMIZER_STEPS = 3
"""Versions per training step."""


@dataclass
class Servers:
    """The version of the servers' weights, and the last one that the trainer announced; implements ``RemoteClient``."""

    version: int = 0
    told: int | None = None
    is_switching: bool = False

    def update(self, servers: list[Any], version: int, answering: list[str]) -> None:
        self.told, self.is_switching = version, False

    def switching(self) -> None:
        self.is_switching = True

    def failures(self) -> dict[str, str]:
        return {}

    def idle_share(self) -> float:
        return 0.0


@dataclass
class Schedule:
    """One random run.

    Attributes:
        log: the groups of each step, with the versions of their tokens; of the resumed lineage.
        kept: the last checkpoint: the collector's state as it is stored, and the length of the log.
    """

    draws: random.Random
    rule: BatchRule
    pace: Pace
    rejection: float
    deaths: float
    evaluations: float = 0.0
    servers: Servers = field(default_factory=Servers)
    log: list[dict[int, Settled[Group]]] = field(default_factory=list)
    kept: tuple[bytes | None, int] = (None, 0)
    running: Counter[str] = field(default_factory=Counter)
    n_sampled: int = 0
    n_losses: int = 0
    collector: asyncio.Task | None = None

    async def sample_held_out(self, place: int) -> Settled[Group]:
        return Settled(await self.group(f"held-out {place}", place))

    async def sample(self, number: int) -> Settled[Group]:
        self.n_sampled += 1
        group = await self.group(f"group {number}", number)
        if random.Random(f"{self.rejection} {number}").random() < self.rejection:  # by its prompt
            return Settled(group.without_trajectories(), "not selected")
        return Settled(group)

    async def group(self, name: str, number: int) -> Group:
        self.running[name] += 1
        assert self.running.total() <= self.pace.max_concurrent
        try:
            versions = []
            for _ in range(self.draws.randint(1, 3)):
                versions.append(self.servers.version)  # a request goes on over switches, in mode ``keep``
                await asyncio.sleep(self.draws.choice((0.0, 0.1, LONGEST / 3)))
            while self.servers.is_switching:
                await asyncio.sleep(0.05)
        finally:
            self.running[name] -= 1
        trajectory = Trajectory(
            (7, *[number] * len(versions)),
            (False, *[True] * len(versions)),
            (0.0, *[-1.0] * len(versions)),
            (NO_VERSION, *versions),
            reward=float(number),
        )
        return Group.of([trajectory])

    def start(self, state: WindowState[Group]) -> Link:
        """Another collector."""
        ours, theirs = socket.socketpair()
        window: GroupWindow[Group] = GroupWindow(self.rule, self.pace, state)
        service = CollectorService(window, self.sample, self.servers, self.sample_held_out)

        async def serve() -> None:
            reader, writer = await asyncio.open_connection(sock=theirs)
            try:
                await service.serve(reader, writer)
            finally:
                writer.close()

        self.collector = asyncio.create_task(serve())
        return Link(ours)

    async def kill(self, link: Link) -> None:
        assert self.collector is not None
        link.close()
        await asyncio.wait([self.collector])
        assert not self.running.total(), "a dead collector samples on"

    async def run(self) -> None:
        """Train ``STEPS`` steps; the collector or the trainer may die anywhere."""
        step, first = 0, 0
        self.servers.version = self.version_of(0)
        link = self.start(WindowState(0, 0))
        await self.publish(link, 0)
        while step < STEPS:
            answer = await link.call("take", timeout=0.5)
            await link.call("servers", version=self.servers.version, servers=[], answering=[])
            if self.n_losses < MOST_LOSSES and self.draws.random() < self.deaths:  # its batch is sampled again
                self.n_losses += 1
                await self.kill(link)
                link = self.start(WindowState(step, first))
                await self.publish(link, step)
                continue
            if answer is None:
                self.check_time(asyncio.get_running_loop().time())
                continue
            batch = read_batch(unpacked(packed(answer)[8:]))
            assert batch.step == step == len(self.log)
            self.log.append(batch.settled)
            first = max(batch.settled) + 1
            await asyncio.sleep(self.draws.choice((0.0, 0.3, LONGEST)))
            step += 1
            await link.call("switching")
            self.servers.version = self.version_of(step)
            await asyncio.sleep(0.2)
            await self.publish(link, step)
            if self.draws.random() < self.evaluations:
                link = await self.evaluate(link, step, first)
            if self.draws.random() < 0.4:
                self.kept = packed(await link.call("state"))[8:], step
            if self.draws.random() < self.deaths:  # of the trainer, and its collector with it
                await self.kill(link)
                content, step = self.kept
                del self.log[step:]
                state = WindowState(0, 0) if content is None else read_state(unpacked(content))
                assert state.step == step
                first, self.servers.version = state.first, self.version_of(step)
                link = self.start(state)
                await self.publish(link, step)
        await self.kill(link)

    async def evaluate(self, link: Link, step: int, first: int) -> Link:
        """One evaluation, with the current weights; the collector may die in it. Returns the link to the last one."""
        n_records = self.draws.randint(1, 6)
        while True:
            before = read_state(await link.call("state"))
            answer = await link.call("evaluate", n_records=n_records, timeout=0.5)
            after = read_state(await link.call("state"))
            # Groups start, finish, and are neither drawn nor consumed.
            assert (after.step, after.first) == (before.step, before.first) == (step, first)
            assert before.settled.keys() <= after.settled.keys()
            if answer is not None:
                groups = read_settled(unpacked(packed(answer)[8:]))
                assert list(groups) == list(range(n_records))
                assert all(one.group.rewards == (float(place),) for place, one in groups.items())
                assert {one.group.versions for one in groups.values()} == {frozenset({self.servers.version})}
                return link
            if self.n_losses < MOST_LOSSES and self.draws.random() < self.deaths:
                self.n_losses += 1
                await self.kill(link)
                link = self.start(WindowState(step, first))
                await self.publish(link, step)

    async def publish(self, link: Link, step: int) -> None:
        await link.call("publish", step=step, version=self.servers.version, servers=[], answering=[])

    def check_time(self, seconds: float) -> None:
        """Raise if the trainer waits although nothing can take so long."""
        assert seconds <= (self.n_sampled + 40 * STEPS) * (LONGEST + 1.0), "no batch is ever complete"

    def version_of(self, step: int) -> int:
        return step * OPTIMIZER_STEPS

    def check(self) -> None:
        consumed = [number for settled in self.log for number in settled]
        assert consumed == list(range(len(consumed))), "each record once, in the order of the starts"
        for step, settled in enumerate(self.log):
            accepted = [one.accepted for one in settled.values()]
            assert self.rule.end(accepted) == len(accepted), "the batch ends where its rounds do"
            for number, one in settled.items():
                assert one.group.rewards == (float(number),)
                if one.accepted:
                    assert {*one.group.trajectories[0].token_ids[1:]} == {number}
                    assert step - min(one.group.versions) // OPTIMIZER_STEPS <= self.pace.max_staleness, number
                else:
                    assert one.reason == "not selected"


@dataclass
class Link:
    """The trainer's side of the socket."""

    channel: socket.socket
    streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def call(self, name: str, **arguments: Any) -> Any:
        if self.streams is None:
            self.streams = await asyncio.open_connection(sock=self.channel)
        reader, writer = self.streams
        writer.write(packed({"call": name, **arguments}))
        return value_of(await receive_async(reader))

    def close(self) -> None:
        if self.streams is not None:
            self.streams[1].close()
        else:
            self.channel.close()


SCHEDULES = {
    "seed": st.integers(0, 2**32),
    "batch_size": st.integers(1, 4),
    "max_staleness": st.integers(0, 3),
    "max_rounds": st.integers(1, 3),
    "rejection": st.sampled_from([0.0, 0.2, 0.6]),
    "deaths": st.sampled_from([0.0, 0.05, 0.2]),
    "evaluations": st.sampled_from([0.0, 0.5]),
    "max_concurrent": st.integers(1, 10),
    "slack": st.integers(0, 8),
}


def follow(
    *,
    seed: int,
    batch_size: int,
    max_staleness: int,
    max_rounds: int,
    rejection: float,
    deaths: float,
    evaluations: float,
    max_concurrent: int,
    slack: int,
) -> None:
    """Follow one schedule to its end, and check it."""
    rule, pace = BatchRule(batch_size, max_rounds), Pace(max_staleness, max_concurrent, batch_size + slack)
    schedule = Schedule(random.Random(seed), rule, pace, rejection, deaths, evaluations)
    run_virtually(schedule.run())
    schedule.check()


@given(**SCHEDULES)
@settings(max_examples=40, deadline=None)
def test_every_schedule_consumes_each_record_once_in_order_within_the_bound(**schedule):
    follow(**schedule)


@pytest.mark.soak
@given(**SCHEDULES)
@settings(max_examples=400, deadline=None)
def test_hundreds_of_schedules_consume_each_record_once_in_order_within_the_bound(**schedule):
    follow(**schedule)


def test_an_error_of_a_group_ends_the_next_call():
    async def run() -> None:
        async def fail(number: int) -> Settled[Group]:
            raise ValueError(f"group {number}")

        ours, theirs = socket.socketpair()
        window: GroupWindow[Group] = GroupWindow(BatchRule(2), Pace(0, 2, 2))
        service = CollectorService(window, fail, Servers())

        async def serve() -> None:
            reader, writer = await asyncio.open_connection(sock=theirs)
            await service.serve(reader, writer)
            writer.close()

        task, link = asyncio.create_task(serve()), Link(ours)
        await link.call("publish", step=0, version=0, servers=[], answering=[])
        with pytest.raises(TrainingError, match="ValueError: group 0"):
            await link.call("take", timeout=5.0)
        link.close()
        await task

    run_virtually(run())


def test_a_state_survives_the_way_into_a_file():
    group = Group.of([Trajectory((1, 2), (False, True), (0.0, -0.5), (NO_VERSION, 4), reward=1.5)], {"rollout": 0.25})
    state = WindowState(3, 12, {13: Settled(group), 14: Settled(group.without_trajectories(), "no reward")}, (12, 15))
    assert read_state(unpacked(packed(state_data(state))[8:])) == state
