"""The environment ``reasoning_gym``: a problem of reasoning-gym, and feedback after a wrong answer."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from archon_core.errors import ConfigError, DataError
from archon_tasks.environments.options import OPTION, read_options
from archon_tasks.reasoning.dataset import ENTRY
from archon_tasks.reasoning.reward import reasoning_reward

FEEDBACK = "That answer is wrong. Try again."


def reasoning_environment(options: Mapping[str, Any], seed: int) -> ReasoningEnvironment:
    """Build the environment; an ``EnvironmentFactory``.

    Raises:
        ConfigError: an option is unknown or invalid.
    """
    read = read_options("reasoning_gym", options, {"tries": 1, "instruction": "", "feedback": FEEDBACK})
    if read["tries"] < 1:
        raise ConfigError(f"{OPTION}.tries: found {read['tries']}; allowed are numbers of 1 or more")
    return ReasoningEnvironment(**read)


class ReasoningEnvironment:
    """Asks until an answer is right or there are no tries left. The reward is the score of the last answer.

    Args:
        tries: largest number of answers.
        instruction: text to add to the question.
        feedback: message after a wrong answer that is not the last one.
    """

    def __init__(self, tries: int, instruction: str, feedback: str) -> None:
        self._tries_left, self._instruction, self._feedback = tries, instruction, feedback
        self._record: Mapping[str, Any] = {}

    def reset(self, record: Mapping[str, Any]) -> list[dict[str, str]]:
        """See ``Environment``. The record is one of the data set ``reasoning_gym``."""
        if ENTRY not in record:
            raise DataError(
                f"environment 'reasoning_gym': found a record without the field {ENTRY!r}; set "
                "data.dataset=reasoning_gym, or choose another environment"
            )
        self._record = record
        suffix = f"\n\n{self._instruction}" if self._instruction else ""
        return [{"role": "user", "content": record[ENTRY]["question"] + suffix}]

    def step(self, message: Mapping[str, Any]) -> tuple[list[dict[str, str]], float, bool]:
        """See ``Environment``."""
        self._tries_left -= 1
        score = reasoning_reward("", message["content"], self._record)
        if score >= 1 or self._tries_left == 0:
            return [], score, True
        return [{"role": "user", "content": self._feedback}], 0.0, False
