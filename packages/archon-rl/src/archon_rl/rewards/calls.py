"""A call of a reward function and its outcome, as they pass between the trainer and the reward processes."""

from __future__ import annotations

import traceback
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from archon_core.errors import ArchonError, RewardError
from archon_rl.fingerprint import Fingerprint
from archon_rl.rewards.checking import NamedReward, checked_reward

MAX_TRACEBACK = 4000
"""Characters of a traceback to keep, from its end."""


@dataclass(frozen=True)
class RewardCall:
    """One completion to score.

    Attributes:
        prompt: text of the prompt.
        completion: text of the completion.
        record: record of the data set.
        place: location of the record, for messages.
    """

    prompt: str
    completion: str
    record: Mapping[str, Any]
    place: str


@dataclass(frozen=True)
class Outcome:
    """The reward of a completion, or why there is none.

    Attributes:
        value: the reward; ``None`` if there is none.
        error: what went wrong, with the location of the record; empty if there is a reward.
        cause: equal for failures that need only one explanation, such as exceptions of one line.
        trace: the traceback of an exception.
        timed_out: whether the time limit ended the call.
    """

    value: float | None = None
    error: str = ""
    cause: str = ""
    trace: str = ""
    timed_out: bool = False

    @property
    def failed(self) -> bool:
        """Whether there is no reward."""
        return self.value is None

    def as_json(self) -> float | dict[str, Any]:
        """The outcome as a value of JSON: a number, or the fields of a failure."""
        return {"error": self.error, "cause": self.cause, "trace": self.trace} if self.value is None else self.value

    @classmethod
    def from_json(cls, found: float | dict[str, Any]) -> Outcome:
        """The outcome that ``as_json`` wrote."""
        return cls(**found) if isinstance(found, dict) else cls(float(found))


class RewardRunner(Protocol):
    """Calls a reward function, in this process or in others."""

    def start(self) -> Fingerprint:
        """Import the function and return its fingerprint; raises ArchonError if that fails. Idempotent."""

    def score(self, calls: Sequence[RewardCall]) -> list[Outcome]:
        """The outcome of each call. Raises a ConfigError that the function raised."""

    def close(self) -> None:
        """End the processes. ``score`` starts them again."""


def make_call(reward: NamedReward, call: RewardCall) -> Outcome:
    """Call the function; exceptions and invalid values become failures.

    Raises:
        ConfigError: the function raised one.
    """
    try:
        return Outcome(checked_reward(reward, call.prompt, call.completion, call.record, place=call.place))
    except RewardError as error:
        cause = error.__cause__
        if cause is None:
            return Outcome(error=str(error), cause="invalid value")
        return failure_by(cause, str(error))


def failure_by(error: BaseException, text: str) -> Outcome:
    """The failure of a call that raised ``error`` in the function's code; ``text`` explains it."""
    frames = traceback.extract_tb(error.__traceback__)[1:]  # the first frame is our call
    line = f"{frames[-1].filename}:{frames[-1].lineno}" if frames else ""
    trace = "" if isinstance(error, ArchonError) else _formatted(error)
    return Outcome(error=text, cause=f"{type(error).__name__} {line}", trace=trace)


def _formatted(error: BaseException) -> str:
    own = error.__traceback__.tb_next if error.__traceback__ else None
    try:
        text = "".join(traceback.format_exception(type(error), error, own))
    except Exception:  # a user-defined exception that cannot be shown
        return ""
    return text[-MAX_TRACEBACK:]
