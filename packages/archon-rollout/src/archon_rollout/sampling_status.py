"""The last step of asynchronous sampling, from the end of a run's ``metrics.jsonl``, for ``archon servers``.

archon-rollout runs without archon-train, so it reads the file itself.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

NAME = "metrics.jsonl"
TAIL_BYTES = 1 << 16
"""Read from the end of the file; rows have a few kilobytes."""

AGE, DROPPED, VERSION = "staleness/", "dropped/", "server_version/"


@dataclass(frozen=True)
class SamplingStatus:
    """What a step reported about its collector.

    Attributes:
        step: the step, from 1.
        running: groups in progress.
        waiting: finished groups in the queue.
        staleness: mean over the groups of the step, in training steps.
        ages: staleness -> share of the trained tokens; without ages that do not occur.
        dropped: reason -> groups that the step did not train on; without reasons that do not occur.
        trainer_waited: seconds in which the trainer waited for the step's batch.
        server_idle: share of the servers' time without a request.
        reward_seconds: mean duration of the rewards of a group.
        versions: address -> version of a server's weights.
    """

    step: int
    running: int
    waiting: int
    staleness: float
    ages: Mapping[int, float] = field(default_factory=dict)
    dropped: Mapping[str, int] = field(default_factory=dict)
    trainer_waited: float = 0.0
    server_idle: float = 0.0
    reward_seconds: float = 0.0
    versions: Mapping[str, int] = field(default_factory=dict)

    def describe(self) -> str:
        """One line."""
        ages = ", ".join(f"{age}: {share:.0%}" for age, share in self.ages.items())
        dropped = ", ".join(f"{n} {reason.replace('_', ' ')}" for reason, n in self.dropped.items())
        parts = [
            f"staleness {self.staleness:.2f}" + (f" ({ages})" if ages else ""),
            f"{self.running} groups running, {self.waiting} in the queue",
            f"dropped: {dropped}" if dropped else "none dropped",
            f"trainer waited {self.trainer_waited:.1f} s, servers idle {self.server_idle:.0%}",
            f"rewards {self.reward_seconds:.2f} s per group",
        ]
        return f"sampling at step {self.step}: {'; '.join(parts)}"


def read_sampling(folder: Path) -> SamplingStatus | None:
    """The status of the last step; ``None`` for a run without a collector, or before its first step."""
    try:
        with (folder / NAME).open("rb") as file:
            file.seek(max(0, file.seek(0, 2) - TAIL_BYTES))
            lines = file.read().splitlines()
    except OSError:
        return None
    for line in reversed(lines):
        try:
            row = json.loads(line)
        except ValueError:
            continue  # cut at the beginning of the tail, or by a crash
        if isinstance(row, dict) and "collector/running" in row:
            return _status_of(row)
    return None


def _status_of(row: Mapping[str, float]) -> SamplingStatus:
    def below(prefix: str) -> dict[str, float]:
        return {name.removeprefix(prefix): value for name, value in row.items() if name.startswith(prefix)}

    ages = {int(age): share for age, share in below(AGE).items() if share}
    return SamplingStatus(
        step=int(row["step"]),
        running=int(row["collector/running"]),
        waiting=int(row.get("collector/waiting", 0)),
        staleness=float(row.get("staleness", 0.0)),
        ages=dict(sorted(ages.items())),
        dropped={reason: int(n) for reason, n in below(DROPPED).items() if n}
        | ({"stale": int(row["stale_prompts"])} if row.get("stale_prompts") else {}),
        trainer_waited=float(row.get("collector/waited_seconds", 0.0)),
        server_idle=float(row.get("collector/server_idle", 0.0)),
        reward_seconds=float(row.get("collector/reward_seconds", 0.0)),
        versions={address: int(version) for address, version in below(VERSION).items()},
    )
