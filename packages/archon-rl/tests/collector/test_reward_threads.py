"""Reward processes of a collector: as many as the data ranks of its trainer would have."""

from __future__ import annotations

import asyncio
import threading
from types import SimpleNamespace

import pytest

from archon_rl.collector import reward_threads as module
from archon_rl.config import RewardOptions
from archon_rl.fingerprint import Fingerprint

MEETING_SECONDS = 20
"""Until a call that meets too few others fails."""


@pytest.mark.parametrize(("data_ranks", "n_processes"), [(1, 2), (3, 6)])
def test_every_data_rank_adds_its_processes(monkeypatch, data_ranks, n_processes):
    """All calls meet, which takes as many processes as there are calls."""
    meeting = threading.Barrier(n_processes)
    built = []

    class MeetingPool:
        def __init__(self, source, *, processes, timeout, expected):
            built.append(processes)

        def score(self, calls):
            meeting.wait(MEETING_SECONDS)
            return calls

        def close(self):
            pass

    monkeypatch.setattr(module, "RewardPool", MeetingPool)
    config = SimpleNamespace(reward="arithmetic", rewards=RewardOptions(processes=2))

    async def run() -> None:
        threads = module.reward_threads(config, Fingerprint("", ""), data_ranks=data_ranks)
        try:
            await asyncio.gather(*(threads.score([]) for _ in range(n_processes)))
        finally:
            threads.close()

    asyncio.run(run())
    assert built == [1] * n_processes
