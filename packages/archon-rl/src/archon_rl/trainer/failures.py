"""``FailureJudge``: explains failed samples, and decides when too many of them end the run."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from archon_core.errors import RewardError
from archon_rl.rewards.calls import Outcome

WINDOW = 1000
"""Number of recent calls that ``rewards.max_failed`` is a share of."""


@dataclass
class FailureJudge:
    """Keeps count of failures over the run.

    Attributes:
        max_failed: largest share of the last ``WINDOW`` calls that may fail.
        note: shows a text to the user, on the first rank.
    """

    max_failed: float
    note: Callable[[str], None]
    _recent: deque[bool] = field(default_factory=lambda: deque(maxlen=WINDOW), init=False)
    _explained: set[str] = field(default_factory=set, init=False)

    def __call__(self, outcomes: Sequence[Outcome], when: str, *, may_all_fail: bool = False) -> None:
        """Explain new failures.

        Args:
            outcomes: of all calls of a batch.
            when: what the batch is for, such as ``Step 3``; for messages.
            may_all_fail: accept a batch without any reward, because it is small.

        Raises:
            RewardError: every call failed, or more than ``max_failed`` of the recent ones.
        """
        failures, n_calls = [one for one in outcomes if one.failed], len(outcomes)
        self._recent.extend(one.failed for one in outcomes)
        if not failures:
            return
        self._explain(failures, n_calls, when)
        if len(failures) == n_calls and not may_all_fail:
            raise RewardError(
                f"{when}: no reward for any of {n_calls} completions; the first: "
                f"{failures[0].error}{_traced(failures[0])}"
            )
        allowed = int(self.max_failed * WINDOW)
        if sum(self._recent) > allowed:
            causes = Counter(one.cause for one in failures)
            raise RewardError(
                f"{when}: found {sum(self._recent)} of the last {len(self._recent)} completions without a reward; "
                f"allowed are {allowed} of {WINDOW} (rewards.max_failed={self.max_failed:g}); correct the reward, or "
                f"raise the limit; the most frequent cause is {causes.most_common(1)[0][0]}; the last: "
                f"{failures[-1].error}{_traced(failures[-1])}"
            )

    def _explain(self, failures: Sequence[Outcome], n_calls: int, when: str) -> None:
        """Count the failures of the batch, and explain causes that are new in this run."""
        new = {one.cause: one for one in reversed(failures) if one.cause not in self._explained}
        self._explained |= new.keys()
        lines = [f"{when}: no reward for {len(failures)} of {n_calls} completions"]
        lines += [f"{one.error}{_traced(one)}" for one in reversed(new.values())]
        self.note("\n".join(lines))


def explain_no_group(n_prompts: int, example: Outcome) -> str:
    """The error of a step without a prompt whose completions all have rewards."""
    return (
        f"found a completion without a reward for each of the {n_prompts} prompts of a step, which leaves none to "
        f"train on; correct the reward; one of them: {example.error}"
    )


def _traced(outcome: Outcome) -> str:
    return f"\n{outcome.trace.rstrip()}" if outcome.trace else ""
