"""The reward of problems whose answer is one number."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from archon_core.errors import DataError
from archon_rl.rewards.number_reading import answer_number


def final_number_reward(prompt: str, completion: str, record: Mapping[str, Any]) -> float:
    """1.0 when the completion's number equals that of ``record["answer"]``, else 0.0.

    The number is the marked one (``\\boxed{}``, or ``####`` before a number), else the last one.

    Raises:
        DataError: the record's answer has no number.
    """
    return number_reward("arithmetic", completion, record, hash_mark=False)


def number_reward(name: str, completion: str, record: Mapping[str, Any], *, hash_mark: bool) -> float:
    """1.0 when ``answer_number`` reads equal numbers from completion and ``record["answer"]``, else 0.0.

    Args:
        name: the reward's, for the message.
        hash_mark: as ``answer_number`` takes it.

    Raises:
        DataError: it reads none from the record's answer.
    """
    expected = answer_number(str(record["answer"]), hash_mark=hash_mark)
    if expected is None:
        raise DataError(
            f"reward {name!r}: the answer {record['answer']!r} contains no number that can be read; name the field "
            "with data.answer_key, or choose another reward"
        )
    found = answer_number(completion, hash_mark=hash_mark)
    return float(found is not None and found.equals(expected))
