"""Options of a storm, and the bounds that follow from its time limits."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

BUCKETS = 5
"""Buckets of the model's weights, so that faults between buckets have a place."""

CALM_VERSIONS = 2
"""Versions at the end without faults, in which servers that are out return."""


@dataclass(frozen=True)
class StormOptions:
    """One storm.

    Attributes:
        seed: of the schedule and of the model.
        events: number of faults.
        versions: versions of weights; the last ``CALM_VERSIONS`` are published without faults.
        servers: servers at a time; a dead one is replaced.
        ranks: trainer ranks.
        transport: weight transport.
        call_seconds: time limit of each call of a publication (``rollout.weight_timeout``).
        probe_seconds: time limit of a probe (``rollout.health_check_timeout_seconds``).
        request_seconds: time limit of a request, all attempts together (``rollout.request_timeout``).
        setup_seconds: time limit of every wait for servers (``rollout.setup_timeout``).
        settle_seconds: time that a version waits for its targets to be in service, so that faults strike.
        drain_seconds: time for a terminated server to finish requests.
    """

    seed: int = 0
    events: int = 100
    versions: int = 30
    servers: int = 4
    ranks: int = 2
    transport: str = "shm"
    call_seconds: float = 0.8
    probe_seconds: float = 0.5
    request_seconds: float = 40.0
    setup_seconds: float = 60.0
    settle_seconds: float = 1.5
    drain_seconds: float = 5.0

    def problem(self) -> str:
        """Why this is no storm; empty if it is one."""
        if self.versions <= CALM_VERSIONS:
            return f"--versions: found {self.versions}; allowed are numbers above {CALM_VERSIONS}, which are calm"
        most = (self.versions - CALM_VERSIONS) * self.servers
        if not 0 <= self.events <= most:
            return (
                f"--events: found {self.events}; allowed are 0 to {most}, one per server and version; raise --versions"
            )
        return ""

    @property
    def longest_publication(self) -> float:
        """Seconds of one publication in which every call takes as long as it may.

        Servers are called in parallel: begin, each bucket, verify; commit and up to three queries of the state; the
        canary; then abort and up to three queries for servers that failed.
        """
        return (BUCKETS + 11) * self.call_seconds

    @property
    def longest_step(self) -> float:
        """Seconds of one step in which every wait takes as long as it may: publications repeat until servers took one,
        for ``setup_seconds``; then all requests, and one more publication if no server was left."""
        publishing = self.setup_seconds + 2 * self.longest_publication
        return self.settle_seconds + 2 * publishing + self.request_seconds

    @property
    def longest_storm(self) -> float:
        """Seconds until a storm that has not ended counts as a hang. A step is long only if faults delay it."""
        return self.longest_step + self.versions * (self.settle_seconds + self.longest_publication + 2.0)

    def as_data(self) -> dict[str, Any]:
        """The options as a JSON object."""
        return asdict(self)
