"""The reward ``reasoning_gym``: the score that a task of reasoning-gym gives to an answer."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any

from archon_core.errors import ConfigError, DataError
from archon_tasks.reasoning.dataset import ENTRY

try:
    import reasoning_gym
    from reasoning_gym.utils import extract_answer
except ModuleNotFoundError as error:
    if error.name != "reasoning_gym":
        raise  # the package is there, and its own import fails
    raise ConfigError(
        "reward: found 'reasoning_gym', whose package reasoning-gym is not installed; "
        "pip install 'archon-tasks[reasoning-gym]'"
    ) from error


def reasoning_reward(prompt: str, completion: str, record: Mapping[str, Any]) -> float:
    """The score of the completion's answer, from 0 to 1: 1 for a right one; some tasks give a part for a close one.

    The answer is the text in the last ``<answer>`` tags; without tags it is the whole completion.

    Raises:
        DataError: the record is not of the data set ``reasoning_gym``.
    """
    entry = record.get(ENTRY)
    if entry is None:
        raise DataError(
            f"reward 'reasoning_gym': found a record without the field {ENTRY!r}; set data.dataset=reasoning_gym, or "
            "choose another reward"
        )
    tagged = extract_answer(completion)
    answer = completion.strip() if tagged is None else tagged
    return float(_score_of(entry["metadata"]["source_dataset"])(answer=answer, entry=entry))


@functools.cache
def _score_of(task: str) -> Callable[..., float]:
    return reasoning_gym.get_score_answer_fn(task)
