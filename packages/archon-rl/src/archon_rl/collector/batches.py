"""Which groups belong to which training step: a pure function of their outcomes, in the order in which they started.

A step takes ``batch_size`` groups. Where a filter rejects groups, it takes further ones in their place, for at most
``max_rounds`` rounds (``trainer.collecting`` samples synchronous steps in the same rounds). So the batches of a run do
not depend on the order in which its groups finish.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from archon_core.errors import ConfigError


@dataclass(frozen=True)
class BatchRule:
    """How many groups a step takes.

    Attributes:
        batch_size: groups of a full batch.
        max_rounds: rounds of sampling per batch; each starts as many groups as are missing.
    """

    batch_size: int
    max_rounds: int = 1

    def end(self, accepted: Sequence[bool]) -> int | None:
        """Number of groups that the first batch uses up; ``None`` if it needs more than these.

        Args:
            accepted: per group, in order of their start, whether it is trained on.
        """
        rounds = self._rounds(accepted)
        return None if rounds is None else rounds[-1]

    def n_rounds(self, accepted: Sequence[bool]) -> int:
        """Number of rounds in which the groups of a complete batch were sampled."""
        return len(self._rounds(accepted) or ())

    def _rounds(self, accepted: Sequence[bool]) -> list[int] | None:
        """The ends of the first batch's rounds; ``None`` if it needs more than these groups."""
        ends, end, kept = [], 0, 0
        while kept < self.batch_size and len(ends) < self.max_rounds:
            start, end = end, end + self.batch_size - kept
            if end > len(accepted):
                return None
            kept += sum(accepted[start:end])
            ends.append(end)
        return ends

    def n_complete(self, accepted: Sequence[bool]) -> int:
        """Number of batches that these groups complete."""
        n, rest = 0, accepted
        while (end := self.end(rest)) is not None:
            n, rest = n + 1, rest[end:]
        return n


@dataclass(frozen=True)
class Pace:
    """How far sampling may run ahead of training.

    Attributes:
        max_staleness: largest number of training steps between the weights that sample a token and the step that
            consumes it; 0 samples every group with the weights that it trains.
        max_concurrent: largest number of groups that are sampled at a time.
        queue_size: largest number of groups that are sampled or wait for their step.

    Raises:
        ConfigError: ``queue_size`` is smaller than a batch, so no batch would ever be complete.
    """

    max_staleness: int
    max_concurrent: int
    queue_size: int

    def check(self, rule: BatchRule) -> None:
        if self.queue_size < rule.batch_size:
            raise ConfigError(
                f"rollout.queue_size: found {self.queue_size}; a step takes data.batch_size={rule.batch_size} groups; "
                "allowed is at least that"
            )
