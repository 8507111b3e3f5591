"""Scores rollouts with a function in the test's process."""

from __future__ import annotations

from archon_rl.rewards.calls import make_call
from archon_rl.rewards.checking import NamedReward
from archon_rl.text_encoding import TextEncoder
from archon_rl.trainer.scoring import Scorer


class Runner:
    """Calls a function in the test's process; counts calls."""

    def __init__(self, function) -> None:
        self.reward = NamedReward("mine", function)
        self.n_calls = 0

    def score(self, calls):
        self.n_calls += len(calls)
        return [make_call(self.reward, call) for call in calls]


def make_scorer(function, encoder: TextEncoder, *, max_failed: float = 0.1, notes: list[str] | None = None) -> Scorer:
    return Scorer(Runner(function), encoder, max_failed, ([] if notes is None else notes).append)
