"""The diagnosis of a publication: bytes, seconds, GB/s, and what the trainer waited for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from archon_core.serving.record import ServerRecord, ServerState

SHOWN_BUCKETS = 16
"""Buckets in a report; the metrics of a run count all."""

Phase = Literal["prepare", "transfer", "verify", "commit", "canary"]


@dataclass(frozen=True)
class BucketTiming:
    """One bucket.

    Attributes:
        n_bytes: bytes sent to each server; tensors that servers keep are not counted.
        gather_seconds: time to gather it from the ranks and to compute checksums; the previous one is on its way
            meanwhile.
        wait_seconds: time that the trainer then waited for the servers.
    """

    n_bytes: int
    gather_seconds: float
    wait_seconds: float


@dataclass(frozen=True)
class FailedServer:
    """A server that failed, and so leaves service, whatever weights it has.

    Attributes:
        server: its record.
        phase: the phase in which it failed.
        reason: why.
        state: its own state afterwards; ``None`` if it did not answer.
    """

    server: ServerRecord
    phase: Phase
    reason: str
    state: ServerState | None


@dataclass(frozen=True)
class Publication:
    """The result of publishing one version.

    Attributes:
        version: the version.
        committed: servers that serve it.
        failed: servers that failed in any phase.
        n_bytes: size of all tensors.
        buckets: timing per bucket.
        seconds: seconds per phase.
    """

    version: int
    committed: tuple[ServerRecord, ...]
    failed: tuple[FailedServer, ...]
    n_bytes: int
    buckets: tuple[BucketTiming, ...]
    seconds: Mapping[Phase, float] = field(default_factory=dict)

    @property
    def sent_bytes(self) -> int:
        """Bytes sent to each server."""
        return sum(bucket.n_bytes for bucket in self.buckets)

    @property
    def bytes_per_second(self) -> float:
        """Bytes sent to each server per second of transfer; 0 if nothing was sent."""
        seconds = self.seconds.get("transfer", 0.0)
        return self.sent_bytes / seconds if seconds else 0.0

    def metrics(self) -> dict[str, float]:
        """Numbers for the run's metrics."""
        return {
            "publish/seconds": sum(self.seconds.values()),
            "publish/gb": self.sent_bytes / 1e9,
            "publish/gb_per_s": self.bytes_per_second / 1e9,
            "publish/gather_s": sum(bucket.gather_seconds for bucket in self.buckets),
            "publish/wait_s": sum(bucket.wait_seconds for bucket in self.buckets),
            "publish/servers": len(self.committed),
            "publish/failed": len(self.failed),
            **{f"publish/{phase}_s": seconds for phase, seconds in self.seconds.items()},
        }

    def describe(self) -> str:
        """A report for the run's log: one line on the whole, then the waits per bucket and each failed server."""
        phases = ", ".join(f"{phase} {1000 * seconds:.0f} ms" for phase, seconds in self.seconds.items())
        lines = [
            f"published version {self.version} to {len(self.committed)} of {len(self.committed) + len(self.failed)} "
            f"servers: {self.sent_bytes / 1e6:.1f} of {self.n_bytes / 1e6:.1f} MB in {len(self.buckets)} buckets, "
            f"{self.bytes_per_second / 1e9:.2f} GB/s; {phases}"
        ]
        if self.buckets:
            index, slowest = max(enumerate(self.buckets), key=lambda pair: pair[1].wait_seconds)
            lines.append(
                f"  longest wait: bucket {index}, {1000 * slowest.wait_seconds:.0f} ms for "
                f"{slowest.n_bytes / 1e6:.1f} MB (gathered in {1000 * slowest.gather_seconds:.0f} ms)"
            )
        if len(self.buckets) > 1:
            shown = self.buckets[:SHOWN_BUCKETS]
            pairs = [f"{1000 * one.gather_seconds:.0f}+{1000 * one.wait_seconds:.0f}" for one in shown]
            more = len(self.buckets) - len(shown)
            rest = f" and {more} more buckets" if more else ""
            lines.append(f"  gathered + waited per bucket, in ms: {', '.join(pairs)}{rest}")
        for failed in self.failed:
            state = failed.state
            now = "does not answer" if state is None else f"says version {state.version}, paused {state.paused}"
            lines.append(f"  {failed.server.address} failed in {failed.phase}: {failed.reason}; it {now}")
        return "\n".join(lines)
