"""Updates on all ranks of a server: each receives its part, and none counts without the others."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from archon_core.errors import ServerError
from archon_core.serving.manifest import WeightManifest
from archon_core.serving.update import BucketNotice, Receipt, UpdatePlan
from archon_rollout.server.weight_copies import ServedWeights

T = TypeVar("T")

ONE_RANK_TRANSPORTS = ("distributed", "ipc")
"""Transports whose receiving end is the first rank alone."""


class RankUpdates:
    """The update protocol of a whole server, on its first rank. Calls come from one thread.

    Args:
        weights: of this rank.
        followers: the processes of the other ranks.
    """

    def __init__(self, weights: ServedWeights, followers: Sequence[subprocess.Popen[str]] = ()) -> None:
        self._weights = weights
        self._followers = followers

    @property
    def n_ranks(self) -> int:
        """Number of ranks of the server."""
        return len(self._followers) + 1

    def begin(self, plan: UpdatePlan) -> None:
        """See ``WeightUpdates.begin``. Raises ServerError if a rank fails."""
        if self._followers and plan.transport in ONE_RANK_TRANSPORTS:
            raise ServerError(
                f"update: found transport {plan.transport!r}, which reaches one rank; this server has {self.n_ranks}; "
                "set rollout.weight_transport to shm or disk, or use servers of one rank"
            )
        self._on_all("begin", plan.as_data(), lambda: self._weights.begin(plan))

    def receive(self, notice: BucketNotice) -> Receipt:
        """See ``WeightUpdates.receive``. Raises ServerError if a rank fails."""
        return self._on_all("receive", notice.as_data(), lambda: self._weights.updates.receive(notice))

    def verify(self, manifest: WeightManifest) -> Receipt:
        """See ``WeightUpdates.verify``. Raises ServerError if a rank fails; then no rank is prepared."""
        try:
            return self._on_all("verify", manifest.as_data(), lambda: self._weights.updates.verify(manifest))
        except ServerError:
            self.abort(manifest.version)
            raise

    def abort(self, version: int) -> None:
        """See ``WeightUpdates.abort``."""
        self._on_all("abort", version, lambda: self._weights.updates.abort(version))

    def _on_all(self, verb: str, data: Any, own: Callable[[], T]) -> T:
        """Execute a call on all ranks; ``own`` is that of this one."""
        for follower in self._followers:
            assert follower.stdin is not None
            try:
                print(json.dumps([verb, data]), file=follower.stdin, flush=True)
            except OSError as error:
                raise ServerError(f"update: a rank of this server has ended ({error}); restart the server") from error
        try:
            result = own()
        finally:
            # Also after an error of this rank: every call reads one answer of each follower, so they stay in step.
            problems = self._answers()
        if problems:
            raise ServerError("update: " + "; ".join(problems))
        return result

    def _answers(self) -> list[str]:
        """The problems of the other ranks."""
        problems = []
        for rank, follower in enumerate(self._followers, start=1):
            assert follower.stdout is not None
            line = follower.stdout.readline()
            problem = json.loads(line) if line else "it has ended; restart the server"
            if problem:
                problems.append(f"rank {rank}: {problem}")
        return problems
